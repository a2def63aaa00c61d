"""Trained rows of the embeddings and of a head: computed apart, equal to PEFT's."""

from __future__ import annotations

import pytest
import torch
from helpers.decoding import assert_decodes
from helpers.llamas import gradients, padded, small_llama, with_lora

from colab_utils.fast import lora, patch, support
from colab_utils.fast.decoder import borrow_decoder, make_decoder
from colab_utils.fast.static_cache import StaticDecoder

IDS = [5, 200, 255]
PLACES = {
    "embeddings": ({"embed_tokens": IDS}, False),
    "both": ({"embed_tokens": IDS, "lm_head": [7, 9]}, False),
    "tied": ({"embed_tokens": IDS}, True),
}


def marked(indices=None, tied=False, **changes):
    """Return a Llama with LoRA whose rows IDS are trained, and differ from its own."""
    model = small_llama(tie_word_embeddings=tied, **changes)
    indices = {"embed_tokens": IDS} if indices is None else indices
    model = with_lora(
        model, target_modules="all-linear", trainable_token_indices=indices
    )
    for name, weight in model.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(weight)
    return model


def batch_of_marks() -> dict[str, torch.Tensor]:
    batch = padded([11, 7, 16])
    batch["input_ids"][:, 1], batch["input_ids"][:, 3] = 200, 5
    return batch


@pytest.mark.parametrize(("recompute", "offload"), [(0, 0), (3, 2)])
def test_apply_gradients_of_trained_rows(recompute, offload):
    model, batch = marked(), batch_of_marks()
    expected = gradients(model, batch)
    assert support.training_problem(model) is None
    assert patch.apply(model, recompute, offload)
    loss, found = gradients(model, batch)
    assert loss == pytest.approx(expected[0].item(), rel=1e-5)
    assert found.keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm(), name
    (rows,) = (grad for name, grad in found.items() if "trainable_tokens" in name)
    assert rows.norm(dim=1).gt(0).tolist() == [True, True, False]  # 255 is not read


@pytest.mark.parametrize("place", ["both", "tied"])
def test_training_problem_of_a_head_with_trained_rows(place):
    model = marked(*PLACES[place])
    assert "norms or" in (support.training_problem(model) or "")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_decode_with_trained_rows(place):
    model = marked(*place)
    decoder = make_decoder(model, 3, 32)
    assert isinstance(decoder, StaticDecoder)
    assert_decodes(model, decoder)
    rows = lora.TrainedRows(lora.llama(model).model.embed_tokens)
    ids = torch.tensor([[3, 5, 255], [200, 7, 0]])
    expected = lora.llama(model).model.embed_tokens(ids)
    assert torch.equal(rows.embed(ids), expected)


def test_kept_decoder_follows_trained_and_disabled_rows():
    model = marked()

    def check() -> StaticDecoder:
        with borrow_decoder(model, 32) as decoder:
            assert_decodes(model, decoder, [11], 4)
        return decoder

    first = check()
    for name, weight in model.named_parameters():
        if "trainable_tokens_delta" in name:
            weight.data.mul_(-2)  # as the optimizer does, in place
    assert check() is first
    with model.disable_adapter():
        assert check() is not first
    model.merge_adapter()
    check()


def test_rows_with_a_hook_are_computed_by_peft():
    """NEFTune adds its noise in a hook of the embeddings."""
    model = marked()
    table = lora.llama(model).model.embed_tokens
    table.register_forward_hook(lambda module, inputs, out: out + 1)
    ids = torch.tensor([5, 7])
    assert torch.equal(lora.TrainedRows(table).embed(ids), table(ids))
