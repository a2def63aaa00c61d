"""Which models and file names `write_gguf` takes, and what it leaves on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_model
from helpers.gguf_files import (
    Q8_0,
    assert_holds,
    expected,
    with_config,
)
from safetensors.torch import load_file, save_file

from colab_utils import models, weights
from colab_utils.weights import gguf_blocks

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ROOT = Path(__file__).resolve().parents[2]


def test_write_gguf_kind_in_capitals(llama, tmp_path):
    assert weights.write_gguf(llama, tmp_path / "a.gguf", "Q8_0").is_file()


def test_write_gguf_current_folder(llama, monkeypatch):
    monkeypatch.chdir(llama)
    file = weights.write_gguf(Path("."))
    assert file.name == f"{llama.name}-Q8_0.gguf"
    file.unlink()


def test_write_gguf_unknown_kind_or_file_name(llama, tmp_path):
    for kind in ("q4_k_m", None, 8):
        with pytest.raises(ValueError, match=f"kind = {kind!r}; it can be: q8_0, f16"):
            weights.write_gguf(llama, kind=kind)
    for out in (tmp_path / "model.bin", tmp_path):
        with pytest.raises(ValueError, match=r"must be the name of a \.gguf file"):
            weights.write_gguf(llama, out)


def test_write_gguf_config_without_architectures(llama, tmp_path):
    folder = with_config(llama, tmp_path / "model", architectures=None)
    assert_holds(weights.write_gguf(folder), expected(llama), Q8_0)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
            "is a GemmaForCausalLM: only LlamaForCausalLM, Mistral.* are exported",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassif"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": YARN}, "rope type yarn"),
        (
            {"rope_parameters": YARN | {"rope_type": "dynamic"}},
            "rope type dynamic",
        ),
        (
            {"intermediate_size": 256},
            "down_proj.weight has the shape .192, 512., .* asks for .192, 256",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 weights .the first is model.layers.2"),
        (
            {"num_hidden_layers": 1},
            "holds model.layers.1.*, which is not a weight of",
        ),
        ({"vocab_size": 1000}, "embed_tokens.weight has|lm_head.weight has"),
    ],
    ids=str,
)
def test_write_gguf_unsupported_model(llama, tmp_path, changes, named):
    folder = with_config(llama, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=named):
        weights.write_gguf(folder)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def test_write_gguf_missing_files(llama, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        weights.write_gguf(tmp_path)
    folder = with_config(llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        weights.write_gguf(folder)


def test_write_gguf_quantized_weight(llama, tmp_path):
    folder = with_config(llama, tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored as I8"):
        weights.write_gguf(folder)


def test_write_gguf_model_in_4_bits(tmp_path):
    quantized = models.load_model("demo", models.quantization_config())
    quantized.save_pretrained(tmp_path / "model")
    models.load_tokenizer("demo").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="Merge a model in 4 bits, or one with"):
        weights.write_gguf(tmp_path / "model")


@pytest.mark.parametrize(
    "text",
    [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\x09" * 8],
    ids=["empty", "a pointer of Git LFS", "only a length"],
)
def test_write_gguf_not_safetensors(llama, tmp_path, text):
    folder = with_config(llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()  # not through a link to the original
    (folder / "model.safetensors").write_bytes(text)
    with pytest.raises(ValueError, match=f"{len(text)} bytes.: download it again"):
        weights.write_gguf(folder)


def test_write_gguf_truncated_shard(llama, tmp_path):
    folder = with_config(llama, tmp_path / "model")
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="cut short"):
        weights.write_gguf(folder)
    assert not list(folder.glob(".*"))


def test_write_gguf_disk_too_small(llama, tmp_path, monkeypatch):
    size = sum(tensor.nbytes for tensor in expected(llama).values()) // 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, size))
    with pytest.raises(OSError, match=r"model\.gguf needs .* [GM]iB free"):
        weights.write_gguf(llama, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*"))


def test_write_gguf_replaces_older_file_at_the_end(llama, tmp_path, monkeypatch):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"older")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_blocks, "convert", stop)
        with pytest.raises(KeyboardInterrupt):
            weights.write_gguf(llama, out)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"older"
    weights.write_gguf(llama, out)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_write_gguf_killed(llama, tmp_path):
    out = tmp_path / "model.gguf"
    part = tmp_path / ".model.gguf.part"
    run = subprocess.Popen(
        [sys.executable, HELPERS / "write_gguf_slowly.py", llama, out],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    while not part.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert part.exists() and not out.exists()
    weights.write_gguf(llama, out)  # replaces the unfinished file
    assert list(tmp_path.iterdir()) == [out]
    assert_holds(out, expected(llama), Q8_0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_write_gguf_memory_is_below_model_size(llama, tokenizer, tmp_path):
    wide = {"hidden_size": 1920, "num_hidden_layers": 1, "vocab_size": 25_000}
    folder = make_model(tmp_path / "model", tokenizer, **wide)
    size = (folder / "model.safetensors").stat().st_size / 2**30
    program = HELPERS / "measure_gguf.py"
    run = subprocess.run(
        [sys.executable, program, llama, folder, ROOT / "bench"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.12 < size / 1.5
