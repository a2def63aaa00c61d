from __future__ import annotations

import pytest
from transformers import AutoConfig

from colab_utils import memory
from colab_utils.shape import Shape


def test_adapter_parameters(seven_b):
    found = memory.adapter_parameters(seven_b(), 16)
    assert found == pytest.approx(2.4986e6 * 16, 1e-4)


def test_inference_holds_weights_and_cache(seven_b):
    found = memory.inference(seven_b(), "qlora", 16, 2048)
    assert found.activations == 2 * 2 * 4096 * 32 * 2048  # 1 GiB
    # measured on an H100, where cuBLAS takes 48 MiB more: 4.98 GiB
    measured = (4.98 - 48 / 1024) * memory.GIB
    assert found.peak == pytest.approx(measured, rel=0.02)
    whole = memory.inference(seven_b(), "full", 16, 1)
    assert whole.adapters == 0 and whole.weights > 13e9


def test_kv_cache_bytes_of_grouped_heads(seven_b):
    """Keys and values are 2 bytes a number; the number of query heads is irrelevant."""
    config = seven_b(num_key_value_heads=8)
    assert memory.kv_cache_bytes(config, 100) == 2 * 2 * 8 * 128 * 32 * 100
    assert memory.kv_cache_bytes(Shape.from_config(config), 1) * 4 == (
        memory.kv_cache_bytes(seven_b(), 1)
    )


def test_ram_to_load_and_to_merge(seven_b):
    assert memory.ram_to_load(seven_b()) < 5e9
    assert memory.ram_to_merge(seven_b()) < 0.75e9


def test_check_names_what_is_unknown(seven_b):
    with pytest.raises(ValueError, match=r"'QLoRA' is unknown; .* qlora, lora, full"):
        memory.estimate(seven_b(), "QLoRA", 16, 1)
    with pytest.raises(ValueError, match=r"'QLoRA' is unknown"):
        memory.inference(seven_b(), "QLoRA", 16, 1)
    with pytest.raises(ValueError, match=r"rank = -8, but it must be at least 1"):
        memory.estimate(seven_b(), "lora", -8, 1)
    with pytest.raises(ValueError, match=r"tokens = 0, but it must be at least 1"):
        memory.plan(seven_b(), "lora", 8, longest=0, update=0, budget=14e9)
    with pytest.raises(ValueError, match=r"Llama's layers, but this one is a gpt2"):
        memory.estimate(AutoConfig.for_model("gpt2"), "lora", 8, 1)
    with pytest.raises(ValueError, match=r"'sgd' is unknown; .* adamw_8bit"):
        memory.estimate(seven_b(), "lora", 16, 1, optimizer="sgd")


def test_memory_as_gib():
    cost = memory.Memory(weights=2**30, gradients=2**29, working=2**29, reserve=2**30)
    found = cost.as_gib()
    assert (found["weights"], found["gradients"], found["total"]) == (1.0, 0.5, 3.0)
    assert cost.peak == 2 * 2**30
