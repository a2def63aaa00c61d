"""Merges that are stopped, killed or repeated: nothing is lost or done twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import (
    assert_merged,
    make_adapter,
    make_base,
    make_wide,
    tensors_of,
)
from safetensors.torch import load_file
from transformers import AutoTokenizer

from colab_utils import models, weights
from colab_utils.weights import merge_blocks, merge_inputs
from colab_utils.workspace import Workspace

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ROOT = Path(__file__).resolve().parents[2]


class Interrupted:
    """`merged_weight`, interrupted after a number of calls as if by the user."""

    def __init__(self, calls: int) -> None:
        self.calls_left = calls

    def __call__(self, *args):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyboardInterrupt
        return weights.merged_weight(*args)


@pytest.fixture
def stopped(tokenizer, tmp_path, monkeypatch, older, capsys):
    """A merge interrupted in its last file but one: base, adapter, finished files."""
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    adapted, _ = weights.read_adapter(adapter)
    shards = weights.find_shards(base)
    calls = [sum(n in adapted for n in load_file(s)) for s in shards[:-1]]
    with monkeypatch.context() as patch:
        patch.setattr(merge_blocks, "merged_weight", Interrupted(sum(calls) - 1))
        with pytest.raises(KeyboardInterrupt):
            weights.merge(base, adapter, older)
    assert len(shards) > 2 and calls[-1]
    part = older.with_name(".mine.part")
    assert f"stopped: the next run resumes from {part};" in capsys.readouterr().out
    return base, adapter, len(shards) - 2


def test_merge_resumes_after_interrupt(stopped, older, capsys):
    base, adapter, done = stopped
    assert (older / "config.json").read_text() == "older"
    first = weights.find_shards(base)[0].name
    inode = (older.with_name(".mine.part") / first).stat().st_ino
    weights.merge(base, adapter, older)
    assert f"resuming: {done} of {done + 2} files" in capsys.readouterr().out
    assert (older / first).stat().st_ino == inode, "it was merged again"
    assert_merged(older, base, adapter, torch.float16)
    assert list(older.parent.iterdir()) == [older]
    assert not list(older.glob("unfinished*"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["base", "adapter", "weights", "inputs"])
def test_merge_starts_again_with_other_inputs(
    stopped, tokenizer, tmp_path, older, capsys, what
):
    """Another base, adapter or kind of weights; or inputs.json was cut short."""
    base, adapter, _ = stopped
    kind = "dequantized" if what == "weights" else "original"
    if what == "base":  # another last byte, the same size
        path = weights.find_shards(base)[0]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif what == "adapter":
        adapter = make_adapter(base, tmp_path / "other", tokenizer, lora_alpha=5)
    elif what == "inputs":  # killed while it was written
        file = older.with_name(".mine.part") / "inputs.json"
        file.write_text(file.read_text()[:-9])
    weights.merge(base, adapter, older, kind)
    assert "resuming" not in capsys.readouterr().out
    clean = weights.merge(base, adapter, tmp_path / "clean", kind)
    found, expected = tensors_of(older), tensors_of(clean)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def killed(folder: Path, how: str, seed: int = 0) -> list[list[str]]:
    """Return state, finished files and exit code of each killed merge."""
    result = subprocess.run(
        [sys.executable, HELPERS / "kill_merge.py", how, str(seed)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HEADLESS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    resumed = sum(line.startswith("resuming") for line in lines)
    states = [line.split()[1:] for line in lines if line.startswith("state: ")]
    assert resumed == sum(int(done) > 0 for _, done, _ in states)
    return states


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_merge_killed_at_each_disk_access(tokenizer, tmp_path):
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    make_adapter(base, tmp_path / "adapter", tokenizer)
    found = killed(tmp_path, "touches")
    states = [state for state, _, _ in found]
    # "none" is the moment between two renames: the next run finds the model.
    order = ["old"] * states.count("old") + ["none"] + ["new"] * states.count("new")
    assert states == order and len(states) > 30
    files = len(weights.find_shards(base))
    assert {int(done) for _, done, _ in found} == set(range(files + 1))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_merge_killed_at_random_moments(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_wide(base, adapter, files=4, layers=4, shape=(2500, 4000))  # 20 MB each
    found = killed(tmp_path, "bytes")
    assert len(found) == 12 and sum(code == "-9" for _, _, code in found) > 5


def test_merge_counts_space_of_killed_merge(base, adapter, monkeypatch, older):
    """A merge killed near its end holds space that the next one can use."""
    shards = weights.find_shards(base)
    size = sum(shard.stat().st_size for shard in shards)
    part = older.with_name(".mine.part")
    part.mkdir()
    others = merge_inputs.other_files(base, adapter)
    inputs = merge_inputs.describe_inputs(shards, adapter, others, None)
    (part / "inputs.json").write_text(inputs)
    (part / "unfinished").write_bytes(bytes(size - 1))
    usage = namedtuple("usage", "total used free")

    def disk(_: Path) -> usage:
        used = sum(file.stat().st_size for file in part.iterdir())
        return usage(0, 0, int(1.1 * size) - used)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    weights.merge(base, adapter, older)
    assert_merged(older, base, adapter, torch.float16)


def test_merge_replaces_older_model(base, adapter, older):
    (older / "older.safetensors").write_text("x")
    left = older.with_name(f".{older.name}.part")  # of a run that was killed
    left.mkdir()
    (left / "junk.safetensors").write_text("x")
    assert weights.merge(base, adapter, older) == older
    names = {file.name for file in older.iterdir()}
    assert {"older.safetensors", "junk.safetensors"}.isdisjoint(names)
    assert list(older.parent.iterdir()) == [older]
    assert_merged(older, base, adapter, torch.float16)


def test_merge_again_without_recipe(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSPACE", str(tmp_path))
    out = Workspace.open().new("models", "mine")
    weights.merge(base, adapter, out)
    assert not (out / "recipe.json").exists()  # notebook 04 writes it later
    assert Workspace.open().new("models", "mine") == out
    (out / "inputs.json").unlink()
    with pytest.raises(FileExistsError, match="was not written by the course"):
        Workspace.open().new("models", "mine")


def test_merge_keeps_merged_model(base, tokenizer, tmp_path, capsys):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    out = weights.merge(base, adapter, tmp_path / "out")
    (out / "recipe.json").touch()
    assert weights.merge(base, adapter, out) == out
    assert f"merged already: {out}" in capsys.readouterr().out
    assert (out / "recipe.json").exists()
    whole = tensors_of(out)
    for file in (
        "model.safetensors",
        "tokenizer.json",
    ):  # if one is missing
        (out / file).unlink()
        weights.merge(base, adapter, out)
        assert "merged already" not in capsys.readouterr().out
        found = tensors_of(out)
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        assert not (out / "recipe.json").exists()
    tokenizer = models.load_tokenizer(str(adapter))
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    weights.merge(base, adapter, out)
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"
    weights.merge(base, adapter, out, "dequantized")
    assert "merged already" not in capsys.readouterr().out


def test_merge_base_downloaded_again(base, adapter, tmp_path, capsys):
    """A file of the Hub's cache is named by its hash: another time changes nothing."""
    blob = tmp_path / "blobs" / (64 * "a")
    blob.parent.mkdir()
    snapshot = tmp_path / "snapshot"
    shutil.copytree(base, snapshot)
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    out = weights.merge(snapshot, adapter, tmp_path / "out")
    os.utime(blob, ns=(1, 1))
    weights.merge(snapshot, adapter, out)
    assert "merged already" in capsys.readouterr().out
