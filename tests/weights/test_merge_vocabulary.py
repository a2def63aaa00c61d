"""Adapters with another number of tokens, and with the adapter's name in their keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import assert_merged, make_adapter, make_base, tensors_of
from helpers.gguf_files import read
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colab_utils import models, weights

CONVERSATIONS = [list(range(3, 40)), [1, 7, 1026, 7, 2]]
TOKENS = ["<new>", "<newer>", "<newest>"]


def resized(base: Path, folder: Path, tokenizer, rows: int, **options) -> Path:
    """Save an adapter of a base whose embeddings have another number of rows."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    usual = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    adapted = get_peft_model(model, LoraConfig(**usual | options))
    adapted.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    return folder


def whole(base: Path, adapter: Path, rows: int) -> torch.nn.Module:
    """Return PEFT's own merge in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


OPTIONS = [
    {},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("tied", "rows"), [(False, 1027), (False, 1000), (True, 1027)])
def test_merge_another_vocabulary(tokenizer, tmp_path, options, tied, rows):
    config = {"tie_word_embeddings": tied, "dtype": torch.float32, "shard": "500KB"}
    base = make_base(tmp_path / "base", **config)
    adapter = resized(base, tmp_path / "adapter", tokenizer, rows, **options)
    if tied and "target_modules" in options:
        with pytest.raises(ValueError, match="they are tied"):
            weights.merge(base, adapter, tmp_path / "out")
        return
    out = weights.merge(base, adapter, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    expected = whole(base, adapter, rows)
    ids = torch.arange(3, min(rows, 1024) - 1)[None]
    with torch.inference_mode():
        assert torch.allclose(loaded(ids).logits, expected(ids).logits, atol=1e-5)
    assert ("lm_head.weight" in tensors_of(out)) == (not tied)
    conversations = [[i for i in ids if i < rows] for ids in CONVERSATIONS]
    found = weights.verify(base, adapter, out, conversations)
    assert found.difference < 1e-5 and found.same_top_1 == 1
    assert weights.merge(base, adapter, out) == out  # merged already


def test_merge_more_tokens_and_export(tied, tokenizer, tmp_path, capsys):
    larger = models.load_tokenizer(str(models.download("demo")))
    larger.add_tokens(TOKENS)
    adapter = resized(tied, tmp_path / "adapter", larger, 1024 + len(TOKENS))
    out = weights.merge(tied, adapter, tmp_path / "out")
    assert "embeddings" not in capsys.readouterr().out  # each token has one
    tensors, fields = read(weights.write_gguf(out, kind="f16"))
    assert fields["tokenizer.ggml.tokens"][1024:] == TOKENS
    assert fields["llama.vocab_size"] == 1027 == tensors["token_embd.weight"].shape[1]


def test_merge_only_one_table_resized(base, tokenizer, tmp_path):
    """PEFT saves the other one only if both or none have a LoRA."""
    options = {"target_modules": ["q_proj", "embed_tokens"]}
    adapter = resized(base, tmp_path / "adapter", tokenizer, 1030, **options)
    with pytest.raises(ValueError, match="1,030 tokens in its embeddings and 1,024 in"):
        weights.merge(base, adapter, tmp_path / "out")


def named(adapter: Path, folder: Path, name: str = "default") -> Path:
    """Copy an adapter with the keys of a state dict: each names the adapter."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors = {}
    for key, tensor in load_file(path).items():
        module, _, kind = key.rpartition(".lora_")
        if "base_layer" in key:
            pass
        elif not module:  # a fully trained weight
            module, _, kind = key.rpartition(".")
            key = f"{module}.modules_to_save.{name}.{kind}"
            tensors[f"{module}.original_module.{kind}"] = tensor + 1
        elif kind.endswith(".weight"):
            key = f"{module}.lora_{kind[0]}.{name}.weight"
        else:
            key += f".{name}" + (".weight" if "magnitude" in kind else "")
        tensors[key] = tensor
    save_file(tensors, path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head", "input_layernorm"]},
    ],
    ids=str,
)
def test_merge_keys_with_the_name_of_the_adapter(base, tmp_path, options):
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    state = named(adapter, tmp_path / "state")
    keys = load_file(state / "adapter_model.safetensors")
    others = ("original_module", "base_layer")
    assert all(".default" in key or any(o in key for o in others) for key in keys)
    out = weights.merge(base, state, tmp_path / "out")
    assert_merged(out, base, adapter, torch.float16)


def test_merge_keys_with_another_name(base, adapter, tmp_path):
    state = named(adapter, tmp_path / "state", "other")
    with pytest.raises(ValueError, match=r"Can't merge .*lora_[AB]\.other\.weight"):
        weights.merge(base, state, tmp_path / "out")


def test_merge_again_with_names_in_another_order(base, adapter, tmp_path, capsys):
    out = weights.merge(base, adapter, tmp_path / "out")
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, change in ((same, {}), (other, {"lora_alpha": 24})):
        shutil.copytree(adapter, folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        config["target_modules"].reverse()
        path.write_text(json.dumps(dict(reversed((config | change).items()))))
    capsys.readouterr()
    weights.merge(base, same, out)
    assert "merged already" in capsys.readouterr().out
    weights.merge(base, other, out)
    assert "merged already" not in capsys.readouterr().out
