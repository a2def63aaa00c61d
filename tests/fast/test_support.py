"""The results of `support` that the tests of `patch` and `decoder` don't check."""

from __future__ import annotations

import torch
from helpers.llamas import small_llama, with_lora
from peft import LoraConfig

from colab_utils.fast import support


def test_decoding_problem_int8_weight():
    model = small_llama()
    proj = model.model.layers[1].mlp.up_proj
    weight = torch.ones_like(proj.weight, dtype=torch.int8)
    proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert support.decoding_problem(model) == "up_proj holds its weight as torch.int8"


def test_problems_of_a_supported_model():
    model = with_lora(small_llama(), target_modules="all-linear")
    assert support.training_problem(model) is None
    assert support.decoding_problem(model) is None


def test_problems_with_two_active_adapters():
    model = with_lora(small_llama(), target_modules="all-linear")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    message = "q_proj does not have exactly one active adapter"
    assert support.training_problem(model) == message
    assert support.decoding_problem(model) == "q_proj has more than one adapter"
    with model.disable_adapter():
        assert support.decoding_problem(model) is None
