"""Weights as they are stored: which files are a model's, and the .bin files of old."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from colab_utils import models
from colab_utils.weights import shards as storage


def put(folder: Path, *names: str) -> Path:
    """Empty files that count as weights."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def index(folder: Path, *names: str) -> Path:
    text = json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def found(folder: Path) -> list[str]:
    return [shard.name for shard in storage.find_shards(folder)]


def test_the_files_are_those_that_transformers_reads(tmp_path):
    put(tmp_path, "b.safetensors", "a.safetensors", "adapter_model.safetensors")
    assert found(tmp_path) == ["a.safetensors", "b.safetensors"]
    index(tmp_path, "b.safetensors", "b.safetensors")
    assert found(tmp_path) == ["b.safetensors"]
    put(tmp_path, "model.safetensors")
    assert found(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "x/m.safetensors", "/m.safetensors", "..", "x\\m"]
)
def test_an_index_leads_nowhere_else(tmp_path, name):
    put(tmp_path, "in/a.safetensors", "evil.safetensors", "in/x/m.safetensors")
    with pytest.raises(ValueError, match="which is no file beside it"):
        storage.find_shards(index(tmp_path / "in", "a.safetensors", name))


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), st.lists).map(
        lambda found: json.dumps({"weight_map": found}).encode()
    )
)
def test_any_other_index_is_named(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match="is no index of weights"):
        storage.find_shards(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"{", b"\xff", b"null"])
def test_a_header_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="is no safetensors file"):
        storage.header(path)


def test_a_mistyped_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="lama does not exist"):
        storage.find_shards(tmp_path / "lama")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_bin_files_are_written_anew_by_the_command_that_is_told(tmp_path, parts, tied):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(models.download("demo"), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if tied:
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    names, places = sorted(tensors), {}
    for i in range(parts):
        file = f"pytorch_model-{i + 1:05}-of-{parts:05}.bin"
        file = file if parts > 1 else "pytorch_model.bin"
        torch.save({name: tensors[name] for name in names[i::parts]}, folder / file)
        places |= dict.fromkeys(names[i::parts], file)
    if parts > 1:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "pytorch_model.bin.index.json").write_text(text)
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    with pytest.raises(FileNotFoundError, match="holds no safetensors") as told:
        storage.find_shards(folder)
    command = shlex.split(str(told.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    shards = storage.find_shards(folder)
    written = dict(item for shard in shards for item in load_file(shard).items())
    assert len(shards) == parts and written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    for file in folder.glob("*.bin*"):
        file.unlink()
    after = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("size", "free", "told"),
    [
        (3 << 20, 1 << 20, "needs 3.0 MiB, .* has 1.0 MiB free"),
        (27 << 29, 300 << 20, "needs 13.5 GiB, .* has 300.0 MiB free"),
    ],
)
def test_a_full_disk_is_told_in_numbers_that_say_something(
    tmp_path, monkeypatch, size, free, told
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free))
    with pytest.raises(OSError, match=f"The model {told}"):
        storage.check_disk(tmp_path, size, "The model")


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock")
def test_one_process_at_a_time(tmp_path):
    other = (
        "import sys; from pathlib import Path; from colab_utils.weights import shards\n"
        "with shards.alone(Path(sys.argv[1])): print('alone')"
    )
    command = [sys.executable, "-c", other, tmp_path]
    with storage.alone(tmp_path):
        run = subprocess.run(command, capture_output=True, text=True)
    assert "RuntimeError: Something else is writing into" in run.stderr
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == "alone\n"


def test_blocks_hold_what_the_file_holds(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"b": torch.arange(5), "a": torch.ones(2, 3)}, path)
    entries = dict(storage.tensors_of(path))
    assert entries["a"]["shape"] == [2, 3] and set(entries) == {"a", "b"}
    _, begin = storage.header(path)
    with path.open("rb") as file:
        file.seek(begin + entries["b"]["data_offsets"][0])
        blocks = list(storage.read_blocks(file, 40, 16, path))
        assert [len(block) for block in blocks] == [16, 16, 8]
        content = torch.frombuffer(b"".join(blocks), dtype=torch.int64)
        assert content.tolist() == list(range(5))
        with pytest.raises(ValueError, match="cut short"):
            list(storage.read_blocks(file, 1 << 20, 16, path))
