"""Merges that are refused: the message, and what is left on the disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import (
    NAME,
    TIED,
    assert_merged,
    assert_untouched,
    changed,
    make_adapter,
    make_base,
    reference,
    tensors_of,
)
from peft import (
    IA3Config,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colab_utils import models, weights
from colab_utils.weights import merge_blocks
from colab_utils.weights.adapters import EMBEDDINGS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        (
            {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
            "DoRA of model.embed_tokens",
        ),
    ],
    ids=str,
)
def test_merge_unsupported_lora(tokenizer, tmp_path, options, named):
    base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    with pytest.raises(ValueError, match=rf"Can't merge this adapter: .*({named})"):
        weights.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


OTHERS = {
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_merge_other_peft_method(base, tmp_path, kind):
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, OTHERS[kind]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"Can't merge this adapter: {kind}"):
        weights.merge(base, tmp_path / "other", tmp_path / "out")


def test_merge_folder_without_adapter(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="02_finetune_qlora writes one"):
        weights.merge(base, tmp_path, tmp_path / "out")


def damaged(adapter: Path, folder: Path, file: str, content: bytes | None) -> Path:
    """Copy an adapter with one file replaced, or left out when None."""
    shutil.copytree(adapter, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b"cut"),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": null}'),
    ],
)
def test_merge_unreadable_adapter(base, adapter, tmp_path, file, content):
    wrong = damaged(adapter, tmp_path / "wrong", file, content)
    with pytest.raises(ValueError, match=r"The adapter in .*wrong can't be read: "):
        weights.merge(base, wrong, tmp_path / "out")
    (wrong / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match=r"older adapter_model\.bin is not read"):
        weights.merge(base, wrong, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "named"), TIED, ids=str)
@pytest.mark.parametrize("ensure", [False, True])
def test_merge_adapter_of_tied_layers(
    tied, tokenizer, tmp_path, options, named, ensure
):
    options = options | {"ensure_weight_tying": ensure}
    adapter = make_adapter(tied, tmp_path / "a", tokenizer, **options)
    if ensure and "modules_to_save" in options:  # both are saved, and stay equal
        out = weights.merge(tied, adapter, tmp_path / "out")
        found, expected = tensors_of(out), reference(tied, adapter, torch.float32)
        assert torch.equal(expected.pop("lm_head.weight"), found[EMBEDDINGS])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        return
    with pytest.raises(ValueError, match=rf"they are tied.* changed .*{named}.*merged"):
        weights.merge(tied, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 1e6])
@pytest.mark.parametrize("replaced", [False, True])
def test_merge_not_finite(base, tokenizer, tmp_path, older, number, replaced):
    options = {"modules_to_save": ["lm_head"]} if replaced else {}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model."
    name = "lm_head.weight" if replaced else NAME.replace("weight", "lora_B.weight")
    tensors[stem + name][7, 3] = 2 * number
    save_file(tensors, adapter / "adapter_model.safetensors")
    named = "lm_head.weight" if replaced else NAME
    with pytest.raises(ValueError, match=f"{named} is not finite when merged"):
        weights.merge(base, adapter, older)
    assert_untouched(older)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, rf"1 adapted weights are not in the base model .*{NAME}"),
        (torch.zeros(192, 64), rf"{NAME} is \(192, 64\) .* but \(192, 192\)"),
        (
            torch.zeros(192, 192, dtype=torch.uint8),
            "stored as U8 .* float16 or bfloat16 weights",
        ),
    ],
)
def test_merge_base_that_does_not_fit(base, adapter, tmp_path, tensor, message):
    wrong = changed(base, tmp_path / "wrong", **{NAME: tensor})
    with pytest.raises(ValueError, match=message):
        weights.merge(wrong, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merge_base_without_weights(adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no safetensors weights"):
        weights.merge(tmp_path, adapter, tmp_path / "out")


def test_merge_base_without_one_shard(adapter, tmp_path):
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    shards = weights.find_shards(base)
    shards[1].unlink()
    lacks = f"lacks 1 of {len(shards)} weight files .*{shards[1].name}"
    with pytest.raises(FileNotFoundError, match=lacks):
        weights.merge(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", [EMBEDDINGS, "model.norm.weight"])
def test_merge_copies_no_damaged_weight(base, adapter, tmp_path, older, name, number):
    tensor = tensors_of(base)[name].clone()
    tensor.view(-1)[5] = number
    wrong = changed(base, tmp_path / "wrong", **{name: tensor})
    with pytest.raises(ValueError, match=rf"{name} in .* holds NaN or infinity, and"):
        weights.merge(wrong, adapter, older)
    assert_untouched(older)


def test_merge_truncated_base(base, adapter, tmp_path, older):
    cut = tmp_path / "cut"
    shutil.copytree(base, cut)
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(ValueError, match="is cut short or damaged"):
        weights.merge(cut, adapter, older)
    assert_untouched(older)


@pytest.mark.parametrize("inside", [".", "snapshots/1"])
def test_merge_out_holds_base(tokenizer, tmp_path, inside):
    base = make_base(tmp_path / "base" / inside, torch.float16)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    (tmp_path / "base" / "config.json").touch()
    with pytest.raises(
        FileExistsError,
        match=r"would be replaced, but it contains \w+, which is read here",
    ):
        weights.merge(base, adapter, tmp_path / "base")
    assert weights.find_shards(base)


@pytest.mark.slow
def test_merge_out_holds_other_files(tmp_path, trained):
    _, adapter = trained["qlora"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "ch1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something that was not written by"):
        weights.merge(models.download("demo"), adapter, tmp_path)
    assert (tmp_path / "thesis" / "ch1.tex").exists()


def test_merge_out_holds_other_model(base, adapter, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    with pytest.raises(FileExistsError, match="something that was not written by"):
        weights.merge(base, adapter, mine)
    assert tensors_of(mine) and list(tmp_path.iterdir()) == [mine]


def test_merge_out_is_a_file(base, adapter, tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(FileExistsError, match="it holds something that was not"):
        weights.merge(base, adapter, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


def test_merge_unknown_weights(base, adapter, tmp_path):
    with pytest.raises(ValueError, match="'4bit'; it can be: original, dequantized"):
        weights.merge(base, adapter, tmp_path / "out", weights="4bit")


def test_merge_while_another_merges(base, adapter, tmp_path, monkeypatch):
    merged, refused = weights.merged_weight, []

    def meanwhile(*given):
        with pytest.raises(RuntimeError, match="Another process is writing into"):
            weights.merge(base, adapter, tmp_path / "out")
        refused.append(1)
        return merged(*given)

    monkeypatch.setattr(merge_blocks, "merged_weight", meanwhile)
    out = weights.merge(base, adapter, tmp_path / "out")
    monkeypatch.undo()
    assert refused
    assert_merged(out, base, adapter, torch.float16)
    assert weights.merge(base, adapter, out) == out  # the lock is open again


def test_merge_disk_too_small(base, adapter, monkeypatch, older):
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, size - 1))
    with pytest.raises(OSError, match=r"needs 2\.\d MiB, .*models has 2\.\d MiB free"):
        weights.merge(base, adapter, older)
    assert_untouched(older)


def test_merge_disk_fills_up(base, adapter, older):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (base / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            weights.merge(base, adapter, older)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(older)
