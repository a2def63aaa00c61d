"""The dequantized NF4 weights, compared with bitsandbytes."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.checkpoints import (
    make_adapter,
    tensors_of,
)
from transformers import AutoModelForCausalLM

from colab_utils import models, recipe, weights
from colab_utils.weights import merge_blocks, nf4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(192, 512), (40, 192), (96, 64)])
def test_dequantized_in_parts(monkeypatch, dtype, shape):
    import bitsandbytes.functional as bnb

    weight = torch.randn(shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True
    )
    expected = bnb.dequantize_4bit(packed, state)
    for block in (64, 6400, 1 << 24):
        monkeypatch.setattr(nf4, "BLOCK", block)
        assert torch.equal(nf4.dequantized(weight, dtype), expected)


def test_trained_dtype_without_recipe(base, adapter, tmp_path, capsys):
    out = weights.merge(base, adapter, tmp_path / "out", weights="dequantized")
    assert "torch.float16 is assumed" in capsys.readouterr().out
    other = tmp_path / "adapter"
    shutil.copytree(adapter, other)
    recipe.write(other, dtype="float16")
    recorded = weights.merge(base, other, tmp_path / "recorded", weights="dequantized")
    assert "is assumed" not in capsys.readouterr().out
    found, expected = tensors_of(out), tensors_of(recorded)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [4096, 30_000, 1 << 21])
def test_merge_dequantized_equals_bitsandbytes(
    base, tokenizer, tmp_path, monkeypatch, block, dtype
):
    """The base is stored in float16 and loaded in `dtype`, then quantized."""
    import bitsandbytes.functional as bnb

    monkeypatch.setattr(merge_blocks, "BLOCK", block)
    targets = {"target_modules": ["q_proj"]}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **targets)
    recipe.write(adapter, dtype=str(dtype).removeprefix("torch."))
    out = weights.merge(base, adapter, tmp_path / "out", weights="dequantized")
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=models.quantization_config(),
        device_map={"": "cpu"},
    )
    quantized = {n: p for n, p in model.named_parameters() if hasattr(p, "quant_state")}
    found, old = tensors_of(out), tensors_of(base)
    updates, _ = weights.read_adapter(str(adapter))
    assert len(quantized) == 14 and set(updates) < set(quantized)
    for name, tensor in old.items():
        expected = tensor
        if name in quantized:
            weight = quantized[name]
            expected = bnb.dequantize_4bit(weight.data, weight.quant_state)
            assert expected.dtype == dtype
            assert not torch.equal(expected.half(), tensor)
        if name in updates:
            expected = weights.merged_weight(expected, updates[name])
        assert torch.equal(found[name], expected.half()), name


@pytest.mark.slow
def test_merge_dequantized_computes_as_trained(trained, tmp_path):
    _, folder = trained["qlora"]
    adapted, _ = models.load_adapter(folder)
    ids = torch.arange(3, 60)[None]
    errors = {}
    for kind in ("original", "dequantized"):
        out = weights.merge(models.download("demo"), folder, tmp_path / kind, kind)
        with torch.inference_mode():
            expected = adapted(ids).logits
            found = models.load_model(str(out)).eval()(ids).logits
        errors[kind] = ((found - expected).norm() / expected.norm()).item()
    assert errors["dequantized"] < 0.1 * errors["original"]
