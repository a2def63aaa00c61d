"""The files of a merged model in addition to its weights, and their folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.checkpoints import (
    assert_merged,
    changed,
)
from peft import (
    PeftModel,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from colab_utils import models, weights


def test_merge_writes_a_complete_model(base, adapter, tokenizer, tmp_path):
    (base / "recipe.json").write_text("{}")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    try:
        out = weights.merge(base, adapter, tmp_path / "out")
    finally:
        (base / "recipe.json").unlink()
        (base / "pytorch_model.bin.index.json").unlink()
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    # Without a recipe of its own the folder counts as unfinished.
    assert {"recipe.json", "pytorch_model.bin.index.json"}.isdisjoint(names)
    assert not any(name.startswith("adapter") for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found, expected = loaded(ids).logits, adapted(ids).logits
    assert (found - expected).norm() / expected.norm() < 1e-2
    merged = models.load_tokenizer(str(out))
    assert merged.chat_template == tokenizer.chat_template
    assert merged("What?")["input_ids"] == tokenizer("What?")["input_ids"]


def test_merge_paths_as_strings(base, adapter, tmp_path):
    out = weights.merge(str(base), str(adapter), str(tmp_path / "out"))
    assert_merged(out, base, adapter, torch.float16)


def test_merge_base_in_a_folder_with_an_adapter(base, adapter, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, both / name)
    (both / "model.safetensors").rename(both / "weights.safetensors")
    out = weights.merge(both, adapter, tmp_path / "out")
    assert not list(out.glob("adapter*"))
    assert_merged(out, base, adapter, torch.float16)


def test_merge_base_with_a_stale_index(base, adapter, tmp_path):
    stale = changed(base, tmp_path / "stale")
    index = json.dumps({"weight_map": {"x": "gone.safetensors"}})
    (stale / "model.safetensors.index.json").write_text(index)
    out = weights.merge(stale, adapter, tmp_path / "out")
    assert not (out / "model.safetensors.index.json").exists()
    assert_merged(out, base, adapter, torch.float16)


@pytest.mark.parametrize("exists", [True, False])
def test_merge_out_is_a_link(base, adapter, tmp_path, exists):
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    place = tmp_path / "large" / "model"
    if exists:
        weights.merge(base, adapter, place, "dequantized")
    link = tmp_path / "small" / "out"
    link.symlink_to(place)
    assert weights.merge(base, adapter, link) == place
    assert link.is_symlink() and list(link.parent.iterdir()) == [link]
    assert_merged(link, base, adapter, torch.float16)


def test_merge_keeps_files_of_the_base(base, adapter, tmp_path):
    bare, whole = tmp_path / "bare", tmp_path / "whole"
    bare.mkdir()
    for file in adapter.glob("adapter_*"):
        shutil.copyfile(file, bare / file.name)
    shutil.copytree(base, whole)
    own = models.load_tokenizer(str(adapter))
    own.chat_template = "{{ messages[0] }}"
    own.save_pretrained(whole)
    texts = ("LICENSE.txt", "USE_POLICY.md", "merges.txt")
    for name in (*texts, "notes.md"):
        (whole / name).write_text(name)
    out = weights.merge(whole, bare, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0] }}"
    assert all((out / name).read_text() == name for name in texts)
    assert not (out / "notes.md").exists()
    # An adapter with a tokenizer of its own keeps its own template.
    its = models.load_tokenizer(str(adapter))
    its.chat_template = "{{ messages }}"
    its.save_pretrained(bare, save_jinja_files=False)
    assert not (bare / "chat_template.jinja").exists()
    out = weights.merge(whole, bare, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"


def test_merge_reports_ids_without_embeddings(base, adapter, tmp_path, capsys):
    weights.merge(base, adapter, tmp_path / "out")
    assert "embeddings" not in capsys.readouterr().out
    larger = tmp_path / "larger"
    shutil.copytree(adapter, larger)
    tokenizer = models.load_tokenizer(str(adapter))
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(larger)
    weights.merge(base, larger, tmp_path / "again")
    line = "the tokenizer has ids up to 1,025, the model 1,024 embeddings"
    assert line in capsys.readouterr().out
