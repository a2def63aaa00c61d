from __future__ import annotations

import pytest
import torch
from helpers.llamas import LORAS, small_llama, with_lora

from colab_utils.fast import lora


def test_find_llama_in_a_wrapped_model():
    model = small_llama()
    assert lora.find_llama(model) is model
    assert lora.find_llama(with_lora(model)) is model
    assert lora.find_llama(torch.nn.Linear(1, 1)) is None


def test_llama_of_another_model():
    model = small_llama()
    assert lora.llama(model) is model
    with pytest.raises(
        TypeError, match="A Linear contains no model that the fast path"
    ):
        lora.llama(torch.nn.Linear(1, 1))


def test_linear_group_places_of_adapters():
    """Ranks and rows follow one another; a layer without an adapter has rows only."""
    model = with_lora(small_llama(), **LORAS["rank patterns"])
    module = lora.decoder_layers(lora.llama(model))[0]
    like = torch.empty(0)
    group = lora.LinearGroup(module, lora.GROUPS[0], like)
    found = [(one.linear, one.rows, one.ranks) for one in group.adapters]
    assert found == [
        (0, slice(0, 96), slice(0, 4)),
        (1, slice(96, 192), slice(4, 6)),
        (2, slice(192, 288), slice(6, 10)),
    ]
    assert (group.rank, group.rows, group.inputs) == (10, 288, 96)
    with model.disable_adapter():
        group = lora.LinearGroup(module, lora.GROUPS[0], like)
    assert (group.rank, group.rows, group.adapters) == (0, 288, [])
