"""Adapters that train the rows of added tokens: merged as PEFT merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_base, make_family, tensors_of
from helpers.gguf_files import read
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colab_utils import models, weights
from colab_utils.weights.vocabulary import fit, grown, resize

MARKS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
IDS = [1024, 1025, 1026]
CONVERSATIONS = [list(range(3, 40)), [1, 1024, 7, 1026, 7, 1025, 2]]
OPTIONS = {
    "embeddings": {"embed_tokens": IDS},
    "both": {"embed_tokens": IDS, "lm_head": IDS},
    "other rows of the head": {"embed_tokens": IDS, "lm_head": [5, 1025]},
    "an older row": {"embed_tokens": [7, 1025, 1026]},
    "a list": IDS,
}


def load(base: Path, adapter: Path) -> PeftModel:
    """Return base and adapter in float32, as PEFT computes them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    fit(model, adapter)
    return PeftModel.from_pretrained(model, adapter).eval()


def trained(base: Path, folder: Path, tokenizer=None, save=False, **options) -> Path:
    """Save an adapter with random numbers in A, B and the rows of the marks."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    resize(model, options.pop("rows", 1027))
    usual = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
    adapted = get_peft_model(
        model, LoraConfig(init_lora_weights=False, **usual | options)
    )
    for name, weight in adapted.named_parameters():
        if "trainable_tokens" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(str(folder), save_embedding_layers=save)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def assert_as_peft(out: Path, base: Path, adapter: Path, dtype: torch.dtype) -> None:
    """Assert that every tensor of `out` is PEFT's own merge, rounded once."""
    merged = load(base, adapter).merge_and_unload().state_dict()
    found = tensors_of(out)
    assert set(found) <= set(merged)
    for name, tensor in found.items():
        assert torch.equal(tensor, merged[name].to(dtype)), name


@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("indices", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_merge_trained_rows(tmp_path, dtype, indices, save):
    base = make_base(tmp_path / "base", dtype, shard="500KB")
    adapter = trained(
        base, tmp_path / "adapter", save=save, trainable_token_indices=indices
    )
    out = weights.merge(base, adapter, tmp_path / "out")
    assert_as_peft(out, base, adapter, torch.float16)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 1027
    found = weights.verify(base, adapter, out, CONVERSATIONS)
    assert found.difference < 2e-3 and found.same_top_1 > 0.9
    assert weights.merge(base, adapter, out) == out


@pytest.mark.parametrize("save", [False, True])
def test_merge_trained_rows_of_a_tied_base(tied, tmp_path, save):
    """PEFT gives the head of a tied model the rows of the embeddings."""
    adapter = trained(
        tied, tmp_path / "adapter", save=save, trainable_token_indices=IDS
    )
    out = weights.merge(tied, adapter, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(out)
    assert_as_peft(out, tied, adapter, torch.float32)
    assert weights.verify(tied, adapter, out, CONVERSATIONS).difference < 1e-5


def test_merge_different_rows_of_a_tied_base(tied, tmp_path):
    indices = {"embed_tokens": IDS, "lm_head": [5]}
    adapter = trained(tied, tmp_path / "adapter", trainable_token_indices=indices)
    with pytest.raises(ValueError, match="they are tied"):
        weights.merge(tied, adapter, tmp_path / "out")


def test_merge_trained_rows_without_new_tokens(base, tmp_path):
    adapter = trained(
        base, tmp_path / "adapter", rows=1024, trainable_token_indices=[5, 1000]
    )
    out = weights.merge(base, adapter, tmp_path / "out")
    assert_as_peft(out, base, adapter, torch.float16)
    old, new = (
        tensors_of(folder)["model.embed_tokens.weight"] for folder in (base, out)
    )
    assert (old != new).any(1).nonzero().flatten().tolist() == [5, 1000]


@pytest.mark.slow
def test_merge_trained_rows_of_a_family_that_is_loaded(tmp_path, capsys):
    base = make_family(tmp_path / "base", "granite")
    indices = {"embed_tokens": [600, 601]}
    adapter = trained(
        base, tmp_path / "adapter", rows=602, trainable_token_indices=indices
    )
    out = weights.merge(base, adapter, tmp_path / "out")
    assert_as_peft(out, base, adapter, torch.float16)
    found = weights.verify(base, adapter, out, [[3, 600, 5, 601, 7]])
    assert "both are loaded" in capsys.readouterr().out and found.difference < 2e-3


def test_merge_lora_and_rows_of_one_table(base, tmp_path):
    adapter = trained(base, tmp_path / "adapter", trainable_token_indices=IDS)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors |= {f"{stem}A": torch.ones(2, 1027), f"{stem}B": torch.ones(192, 2)}
    save_file(tensors, file)
    with pytest.raises(ValueError, match="LoRA and trained rows of model"):
        weights.merge(base, adapter, tmp_path / "out")


def test_merge_added_tokens_and_export(tied, tmp_path):
    tokenizer = models.load_tokenizer(str(models.download("demo")))
    model = models.load_model(str(tied))
    assert models.add_tokens(model, tokenizer, MARKS) == IDS
    adapter = trained(
        tied, tmp_path / "adapter", tokenizer, trainable_token_indices=IDS
    )
    out = weights.merge(tied, adapter, tmp_path / "out")
    tensors, fields = read(weights.write_gguf(out, kind="f16"))
    assert fields["tokenizer.ggml.tokens"][1024:] == MARKS
    assert fields["llama.vocab_size"] == 1027
    table = torch.from_numpy(tensors["token_embd.weight"].data.copy())
    expected = tensors_of(out)["model.embed_tokens.weight"]
    assert torch.equal(table, expected.half())


def test_grown_row_is_never_the_top_1_token(base):
    head = tensors_of(base)["lm_head.weight"]
    new = grown(head, 1027)
    assert torch.equal(new[:1024], head) and new.dtype == head.dtype
    hidden = torch.randn(200, head.shape[1])
    assert (hidden @ new.float().T).argmax(-1).max() < 1024
