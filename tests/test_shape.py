from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig

from colab_utils.shape import Shape


@st.composite
def configs(draw) -> LlamaConfig:
    """Draw a small LlamaConfig, in which optional fields may be missing."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 16))
    fields = {
        "hidden_size": heads * head_dim,
        "intermediate_size": draw(st.integers(1, 200)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "vocab_size": draw(st.integers(2, 300)),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "max_position_embeddings": draw(st.integers(16, 4096)),
        "pad_token_id": None,
    }
    if kv_heads != heads or draw(st.booleans()):
        fields["num_key_value_heads"] = kv_heads
    if draw(st.booleans()):  # a head may be wider than its share of the width
        fields["head_dim"] = 2 * draw(st.integers(1, 16))
    return LlamaConfig(**fields)


@given(configs())
@settings(deadline=None, max_examples=40)
def test_shape_from_config_is_the_shape_of_the_model(config):
    """All sizes are those of the weights that transformers creates for the config."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shape = Shape.from_config(config)
    assert shape.family == "llama" and not shape.quantized
    assert model.lm_head.weight.shape == (shape.vocab, shape.width)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert len(model.model.layers) == shape.layers and tied == shape.tied
    layer = model.model.layers[0]
    parts = {**dict(layer.self_attn.named_children())}
    parts |= dict(layer.mlp.named_children())
    for name, (inputs, outputs) in shape.linear_shapes().items():
        assert parts[name].weight.shape == (outputs, inputs)
    assert layer.self_attn.head_dim == shape.head_dim
    assert shape.queries == shape.heads * shape.head_dim
    assert shape.keys == shape.kv_heads * shape.head_dim
    assert layer.input_layernorm.variance_epsilon == shape.norm_eps
    assert (shape.activation, shape.rope) == ("silu", "default")
    assert shape.max_positions == config.max_position_embeddings


def test_shape_from_config_without_head_dim():
    config = AutoConfig.for_model("mixtral")
    assert config.head_dim is None  # or this test checks nothing
    assert Shape.from_config(config).head_dim == 128
    assert Shape.from_config(AutoConfig.for_model("qwen2")).head_dim == 128


def test_shape_from_config_of_a_shape_is_the_shape():
    shape = Shape.from_config(LlamaConfig())
    assert Shape.from_config(shape) is shape
    assert {shape: 1}[Shape.from_config(LlamaConfig())] == 1


@pytest.mark.parametrize(
    ("family", "rope"),
    [("llama", "default"), ("gemma3_text", "mixed")],
)
def test_shape_rope(family, rope):
    assert Shape.from_config(AutoConfig.for_model(family)).rope == rope


def test_shape_rope_of_llama_3():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(rope_parameters=rope, max_position_embeddings=131072)
    assert Shape.from_config(config).rope == "llama3"


def test_shape_quantized():
    config = LlamaConfig(quantization_config={"load_in_4bit": True})
    assert Shape.from_config(config).quantized


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bert", "opt"])
def test_shape_from_config_of_other_layers_is_refused(family):
    """Some have an MLP of that name, but no key heads."""
    with pytest.raises(
        ValueError, match=rf"Llama's layers, but this one is a {family}"
    ):
        Shape.from_config(AutoConfig.for_model(family))


def test_shape_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Shape.from_config(LlamaConfig()).width = 1
