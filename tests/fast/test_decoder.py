"""Decoding on a static cache computes what transformers computes."""

from __future__ import annotations

import weakref

import pytest
import torch
from peft import LoraConfig
from test_patch import LORAS, SHAPES, small_llama, with_lora

from colab_utils import models
from colab_utils.fast import decoder as decoding
from colab_utils.fast import patch as kernels
from colab_utils.memory import costs

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
ROPES = {
    "linear positions": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "Llama 3's positions": {"rope_type": "llama3", **LLAMA3},
}
ALL_SHAPES = SHAPES | {name: {"rope_parameters": r} for name, r in ROPES.items()}
LENGTHS = [11, 3, 7]


def lines(lengths: list[int], more: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [
        torch.randint(3, 256, (n + more,), generator=draw).tolist() for n in lengths
    ]


def assert_computes(model, decoder, lengths=LENGTHS, more: int = 5, rel: float = 1e-6):
    """The scores after every token are those of a whole forward pass."""
    rows = lines(lengths, more)
    prompts = [row[:n] for row, n in zip(rows, lengths, strict=True)]
    found = [decoder.start(prompts)]
    for i in range(more):
        tokens = [row[n + i] for row, n in zip(rows, lengths, strict=True)]
        found.append(decoder.step(torch.tensor(tokens)))
    for row, n, scores in zip(rows, lengths, torch.stack(found, 1), strict=True):
        with torch.inference_mode():
            out = model.eval()(input_ids=torch.tensor([row])).logits[0, n - 1 :]
        error = (scores.double() - out.double()).norm() / out.double().norm()
        assert error < rel, (n, error)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("shape", ALL_SHAPES.values(), ids=ALL_SHAPES)
def test_scores_are_those_of_transformers(shape, lora):
    model = with_lora(small_llama(**shape), **lora)
    assert decoding.why_not(model) is None
    decoder = decoding.decoder(model, 4, 32)
    assert isinstance(decoder, decoding.Static)
    assert_computes(model, decoder)
    assert_computes(model, decoder, [2, 20])  # nothing is left of the last ones
    # A GPU steps in unused rows as well: from 0 on, or they would leave the cache.
    assert decoder.lengths[2:].tolist() == [0, 0]


def test_a_prompt_that_goes_through_the_mlp_in_parts(monkeypatch):
    monkeypatch.setattr(costs, "MLP_ROWS", 4)
    model = with_lora(small_llama(), target_modules="all-linear")
    assert_computes(model, decoding.Static(model, 3, 32))


def test_4_bits(tuned_demo):
    assert_computes(tuned_demo, decoding.Static(tuned_demo, 3, 32), rel=1e-4)


@pytest.fixture(scope="module")
def tuned_demo():
    model = models.load_model("demo", models.quantization_config())
    return with_lora(model, target_modules="all-linear")


def test_an_adapter_that_is_off_or_merged_adds_nothing():
    model = with_lora(small_llama(), target_modules="all-linear")
    with model.disable_adapter():
        assert_computes(model, decoding.Static(model, 3, 32))
    model.merge_adapter()
    assert_computes(model, decoding.Static(model, 3, 32))
    model.unmerge_adapter()
    assert_computes(model, decoding.Static(model, 3, 32))


def test_embeddings_and_head_with_adapters():
    targets = ["q_proj", "embed_tokens", "lm_head"]
    model = with_lora(small_llama(), target_modules=targets)
    assert decoding.why_not(model) is None
    assert_computes(model, decoding.Static(model, 3, 32))


def test_while_the_fast_path_of_training_is_on():
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model)
    assert_computes(model, decoding.Static(model, 3, 32))


def streamed(model, more: int = 4) -> None:
    """A kept decoder computes what the model is now."""
    with decoding.reused(model, 32) as decoder:
        assert_computes(model, decoder, LENGTHS[:1], more)


def replace_a_weight(model):
    layer = model.get_base_model().model.layers[1].mlp.down_proj.base_layer
    layer.weight = torch.nn.Parameter(layer.weight.data * -2)
    return model


def another_rank(model):
    model.delete_adapter("default")
    model.add_adapter("default", LoraConfig(r=1, target_modules=["q_proj", "v_proj"]))
    model.set_adapter("default")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def resized(model):
    model.resize_token_embeddings(260)
    return model


def merged(model):
    model.merge_adapter()
    return model


CHANGES = {
    "the adapter is dropped": lambda model: model.unload(),
    "the adapter is merged": merged,
    "another rank": another_rank,
    "another weight": replace_a_weight,
    "other embeddings": resized,
    "another dtype": lambda model: model.float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_is_never_out_of_date(change):
    model = with_lora(small_llama(), target_modules="all-linear")
    streamed(model)
    before = decoding._last[model.get_base_model()]
    streamed(model)
    assert decoding._last[model.get_base_model()] is before
    streamed(change(model))


def test_a_model_that_gets_an_adapter_later():
    model = small_llama()
    streamed(model)
    streamed(with_lora(model, target_modules="all-linear"))


def test_4_bits_that_were_merged_and_unmerged(tuned_demo):
    with decoding.reused(tuned_demo, 32) as decoder:
        assert_computes(tuned_demo, decoder, LENGTHS[:1], rel=1e-4)
    tuned_demo.merge_adapter()
    tuned_demo.unmerge_adapter()
    with decoding.reused(tuned_demo, 32) as decoder:
        assert_computes(tuned_demo, decoder, LENGTHS[:1], rel=1e-4)


def test_two_readers_never_share_a_cache():
    model = small_llama()
    with decoding.reused(model, 32) as one, decoding.reused(model, 32) as other:
        assert one is not other


def test_what_is_kept_goes_with_the_model():
    import gc

    model = small_llama()
    streamed(model)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def norms_adapted():
    from peft import LNTuningConfig, get_peft_model

    return get_peft_model(small_llama(), LNTuningConfig(task_type="CAUSAL_LM"))


def adalora():
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        task_type="CAUSAL_LM", total_step=10, target_modules=["q_proj"]
    )
    return get_peft_model(small_llama(), config)


OTHERS = {
    "norms that are adapted": (norms_adapted, "its norms are adapted"),
    "AdaLoRA": (adalora, "another kind of adapter"),
    "DoRA": (lambda: with_lora(small_llama(), use_dora=True), "kind of LoRA"),
    "biases": (lambda: small_llama(attention_bias=True), "q_proj has a bias"),
    "gelu": (lambda: small_llama(hidden_act="gelu"), "activation is gelu"),
    "dynamic positions": (
        lambda: small_llama(
            rope_parameters={
                "rope_type": "dynamic",
                "factor": 2.0,
                "rope_theta": 10000.0,
            }
        ),
        "positions are dynamic",
    ),
}


@pytest.mark.parametrize(("make", "said"), OTHERS.values(), ids=OTHERS)
def test_other_models_are_decoded_as_transformers_does(make, said, capsys):
    model = make()
    decoder = decoding.decoder(model, 3, 32)
    assert isinstance(decoder, decoding.Plain)
    assert f"plain decoding: {said}" in capsys.readouterr().out or said in (
        decoding.why_not(model)
    )
    assert_computes(model, decoder)


def test_a_prompt_adapter_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match=r"prompt, no LoRA: use model\.generate"):
        decoding.decoder(get_peft_model(small_llama(), config), 1, 32)


def test_a_weight_in_8_bits_is_not_read_as_one_of_16():
    model = small_llama()
    proj = model.model.layers[1].mlp.up_proj
    weight = torch.ones_like(proj.weight, dtype=torch.int8)
    proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert decoding.why_not(model) == "up_proj holds its weight as torch.int8"


def test_a_second_adapter_on_fewer_modules():
    model = with_lora(small_llama(), target_modules="all-linear")
    model.add_adapter("small", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("small")
    assert decoding.why_not(model) is None
    assert_computes(model, decoding.Static(model, 3, 32))


def test_a_full_cache_says_so():
    model = small_llama()
    decoder = decoding.Static(model, 1, 8)
    with pytest.raises(ValueError, match="9 tokens for a cache of 1 x 8"):
        decoder.start(lines([9], 0))
    decoder.start(lines([8], 0))
    with pytest.raises(ValueError, match="8 tokens is full"):
        decoder.step(torch.tensor([5]))


def test_a_second_adapter_that_is_active_is_not_left_out():
    """Of the same names and shapes as a recorded step, but for one that is added."""
    model = with_lora(small_llama(), target_modules="all-linear")
    model.add_adapter("other", LoraConfig(r=4, target_modules="all-linear"))
    with decoding.reused(model, 32) as decoder:
        assert isinstance(decoder, decoding.Static)
    model.base_model.set_adapter(["default", "other"])
    with decoding.reused(model, 32) as decoder:
        assert isinstance(decoder, decoding.Plain)


def test_an_adapter_of_the_head_alone_that_is_switched_off():
    model = with_lora(small_llama(), target_modules=["lm_head"])
    with decoding.reused(model, 32) as first:
        pass
    with model.disable_adapter(), decoding.reused(model, 32) as second:
        assert second is not first
