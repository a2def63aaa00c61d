"""Decoding on a static cache computes what transformers computes."""

from __future__ import annotations

import pytest
import torch
from test_kernels import LORAS, SHAPES, small_llama, with_lora

from colab_utils import decoding, kernels, models

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


def test_a_prompt_that_goes_through_the_mlp_in_parts(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK", 4)
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


def test_a_change_of_the_adapter_is_noticed():
    model = with_lora(small_llama(), target_modules="all-linear")
    decoder = decoding.Static(model, 3, 32)
    assert decoder.fits(32) and not decoder.fits(64)
    with model.disable_adapter():
        assert not decoder.fits(32)
    assert decoder.fits(32)


OTHERS = {
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


def test_a_prompt_adapter_is_no_lora():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(small_llama(), config)
    assert decoding.why_not(model) == "its adapter is a prompt, no LoRA"


def test_a_full_cache_says_so():
    model = small_llama()
    decoder = decoding.Static(model, 1, 8)
    with pytest.raises(ValueError, match="9 tokens for a cache of 1 x 8"):
        decoder.start(lines([9], 0))
    decoder.start(lines([8], 0))
    with pytest.raises(ValueError, match="8 tokens is full"):
        decoder.step(torch.tensor([5]))
