"""The values of merged weights, compared with PEFT's own merge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import (
    NAME,
    TIED,
    assert_merged,
    make_adapter,
    make_base,
    make_wide,
    reference,
    tensors_of,
)
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from colab_utils import models, weights
from colab_utils.weights import merge_blocks

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shard", ["1GB", "1MB"])
def test_merge_equals_peft(tokenizer, tmp_path, dtype, shard):
    base = make_base(tmp_path / "base", dtype, shard)
    files = len(list(base.glob("*.safetensors")))
    assert files == 1 if shard == "1GB" else files > 2
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    out = weights.merge(base, adapter, tmp_path / "deep" / "out")
    written = torch.float16 if dtype == torch.bfloat16 else dtype
    assert_merged(out, base, adapter, written)
    assert len(list(out.glob("*.safetensors"))) == files
    assert AutoConfig.from_pretrained(out).dtype == written


def test_merge_into_bfloat16_keeps_a_small_update(tokenizer, tmp_path, capsys):
    """Rounded to bfloat16, most weights would stay as they are."""
    base = make_base(tmp_path / "base", torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, scale=0.01)
    out = weights.merge(base, adapter, tmp_path / "out")
    assert "the merged weights are float16" in capsys.readouterr().out
    old, exact = tensors_of(base)[NAME].double(), reference(base, adapter, torch.double)
    update = exact[NAME] - old
    assert 1e-5 < update.norm() / old.norm() < 1e-3

    def kept(merged: torch.Tensor) -> float:
        return (((merged.double() - old) * update).sum() / update.square().sum()).item()

    assert kept(exact[NAME].bfloat16()) < 0.5
    assert kept(tensors_of(out)[NAME]) > 0.9


def test_merge_keeps_bfloat16_where_float16_overflows(tokenizer, tmp_path, capsys):
    base = make_base(tmp_path / "base", torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    config = json.loads((base / "config.json").read_text())
    config["model_type"] = "gemma3_text"
    (base / "config.json").write_text(json.dumps(config))
    weights.merge(base, adapter, tmp_path / "out")
    assert "the activations of gemma3_text exceed float16" in capsys.readouterr().out
    assert tensors_of(tmp_path / "out")[NAME].dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"lora_alpha": 7, "r": 3},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": ["down_proj"]},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"^model.layers.0.mlp.down_proj": 2, "v_proj": 5}},
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_merge_kinds_of_lora(base, tokenizer, tmp_path, options):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    out = weights.merge(base, adapter, tmp_path / "out")
    assert_merged(out, base, adapter, torch.float16)


def test_merge_adapter_with_saved_embeddings(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    out = weights.merge(base, tmp_path / "adapter", tmp_path / "out")
    found = tensors_of(out)
    expected = reference(base, tmp_path / "adapter", torch.float16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_merge_trained_adapter(trained, tmp_path):
    _, folder = trained["qlora"]
    base = models.download("demo")
    out = weights.merge(base, folder, tmp_path / "out")
    assert_merged(out, base, folder, torch.float16)


def test_merged_weight_equals_formula(adapter, base):
    updates, _ = weights.read_adapter(adapter)
    name, update = next(iter(updates.items()))
    assert update.scale == 12 / 4
    weight = tensors_of(base)[name]
    expected = weight.double() + 3 * update.b.double() @ update.a.double()
    expected = expected.half()
    found = weights.merged_weight(weight, update)
    assert found.dtype == torch.float32  # merge_shard rounds it
    torch.testing.assert_close(found.half(), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("block", [4096, 30_000, 100_000])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_merge_any_block_size(base, tokenizer, tmp_path, monkeypatch, block, options):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    monkeypatch.setattr(merge_blocks, "BLOCK", block)
    out = weights.merge(base, adapter, tmp_path / "out")
    assert_merged(out, base, adapter, torch.float16)


def test_merge_finite_numbers_with_infinite_sum(base, tokenizer, tmp_path):
    options = {"modules_to_save": ["lm_head"]}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"].fill_(1000)
    save_file(tensors, adapter / "adapter_model.safetensors")
    out = weights.merge(base, adapter, tmp_path / "out")
    assert (tensors_of(out)["lm_head.weight"] == 1000).all()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "_"), TIED, ids=str)
def test_merge_tied_base_with_stored_head(tied, tokenizer, tmp_path, options, _):
    """Transformers ties head and embeddings that are equal; merged, they differ."""
    tensors = tensors_of(tied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(tied, tmp_path / "a", tokenizer, **options)
    out = weights.merge(tied, adapter, tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        found, expected = merged(ids).logits, adapted(ids).logits
    assert (found - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_merge_memory_is_below_model_size(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    # Each weight has 16 MiB in float16.
    make_wide(base, adapter, files=1, layers=24, shape=(2048, 4096))
    run = subprocess.run(
        [sys.executable, HELPERS / "measure_merge.py", base, adapter, tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    size = (tmp_path / "out" / "model.safetensors").stat().st_size / 2**20
    shutil.rmtree(tmp_path)
    assert size > 380
    # A few copies of one weight in float16 and float32, not the model.
    assert float(run.stdout.splitlines()[-1]) < size / 2
