"""Every family computes the same on the fast path, on a static cache and in PEFT."""

from __future__ import annotations

import pytest
import torch
from helpers.decoding import assert_decodes, assert_reads_several_tokens
from helpers.families import CONFIGS, OTHERS, small_model
from helpers.llamas import gradients, packed, padded, with_lora

from colab_utils.fast import patch, support
from colab_utils.fast.decoder import ReferenceDecoder, make_decoder
from colab_utils.fast.static_cache import StaticDecoder


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_peft(name, recompute):
    model = with_lora(small_model(name), target_modules="all-linear")
    batch = padded([11, 7, 2, 16])
    loss, expected = gradients(model, batch)
    assert patch.apply(model, recompute)
    found_loss, found = gradients(model, batch)
    assert found_loss == pytest.approx(loss.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        assert grad.norm() > 0 and (found[key] - grad).norm() < 1e-5 * grad.norm(), key
    # packed rows are separate documents
    assert gradients(model, packed(batch))[0] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_static_cache_gives_the_scores_of_transformers(name):
    model = with_lora(small_model(name), target_modules="all-linear")
    decoder = make_decoder(model, 3, 32)
    assert isinstance(decoder, StaticDecoder)
    assert_decodes(model, decoder)
    assert_reads_several_tokens(model, StaticDecoder(model, 1, 32))


@pytest.mark.parametrize("name", CONFIGS)
def test_static_cache_gives_the_greedy_tokens_of_generate(name):
    model = small_model(name, torch.float32).eval()
    prompt = torch.arange(5, 25)[None]
    expected = model.generate(
        prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=True
    )
    decoder = make_decoder(model, 1, 40)
    scores, found = decoder.start(prompt.tolist()), []
    for _ in range(12):
        found.append(scores.argmax(-1))
        scores = decoder.step(found[-1])
    assert torch.cat(found).tolist() == expected[0, 20:].tolist()


def test_sliding_window_is_refused_beyond_it(capsys):
    model = with_lora(small_model("mistral", sliding_window=16))
    patch.apply(model)
    gradients(model, padded([16, 9]))
    with pytest.raises(ValueError, match=r"17 tokens.*sliding window of 16"):
        gradients(model, padded([17, 9]))
    assert isinstance(make_decoder(model, 1, 16), StaticDecoder)
    decoder = make_decoder(model, 1, 17)
    assert isinstance(decoder, ReferenceDecoder)
    assert "17 tokens are more than the sliding window of 16" in capsys.readouterr().out


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_stay_on_the_reference_path(name, capsys):
    model = with_lora(small_model(name, torch.float32), target_modules="all-linear")
    assert not patch.apply(model)
    kind = model.config.model_type
    assert f"the fast path knows llama, mistral, qwen2, qwen3, smollm3, not {kind}" in (
        capsys.readouterr().out
    )
    assert isinstance(make_decoder(model, 1, 16), ReferenceDecoder)


def test_trained_biases_stay_on_the_reference_path():
    model = with_lora(small_model("qwen2"), target_modules="all-linear", bias="all")
    assert "has a bias that is trained" in support.training_problem(model)
