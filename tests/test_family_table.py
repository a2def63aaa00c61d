from __future__ import annotations

import pytest
import torch
import transformers
from helpers.families import CONFIGS, small
from transformers import AutoConfig, AutoModelForCausalLM

from colab_utils import families
from colab_utils.families import FAMILIES
from colab_utils.memory import costs
from colab_utils.shape import Shape


@pytest.mark.parametrize("name", CONFIGS)
def test_shape_has_what_the_family_adds(name):
    """Biases, norms of heads and NoPE layers are those of transformers' model."""
    config = small(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.from_config(config)
    assert families.family_of(model) == shape.family == config.model_type
    for i, layer in enumerate(model.model.layers):
        parts = dict(layer.self_attn.named_children())
        assert ("q_norm" in parts) == shape.qk_norm
        parts |= dict(layer.mlp.named_children())
        shapes = shape.linear_shapes()
        assert shape.biased == tuple(n for n in shapes if parts[n].bias is not None)
        assert (not getattr(layer.self_attn, "use_rope", True)) == (i in shape.nope)
    assert sum(costs.parameters(shape)) == sum(p.numel() for p in model.parameters())


def test_every_family_has_a_small_config():
    assert {small(name).model_type for name in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_class_is_that_of_transformers(family):
    module, prefix = families.modeling(family), FAMILIES[family].prefix
    auto = transformers.AutoModelForCausalLM._model_mapping
    assert (
        getattr(module, f"{prefix}ForCausalLM")
        is auto[type(AutoConfig.for_model(family))]
    )


def test_family_of_a_derived_class():
    class Own(transformers.LlamaForCausalLM):
        pass

    with torch.device("meta"):
        assert families.family_of(Own(small("llama"))) is None


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("mistral", {"sliding_window": 64}, 64),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 64}, None),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, None),
        (
            "qwen2",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
            64,
        ),
        ("smollm3", {"sliding_window": 64}, None),
        ("smollm3", {"sliding_window": 64, "use_sliding_window": True}, 64),
        ("llama", {}, None),
    ],
)
def test_shape_window(name, changes, window):
    assert Shape.from_config(small(name, **changes)).window == window
