"""The files that hold a model's weights: find, convert, lock and read them."""

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

from colab_utils import models, weights
from colab_utils.weights import shards


def put(folder: Path, *names: str) -> Path:
    """Create empty files that count as weights."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def index(folder: Path, *names: str) -> Path:
    text = json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def found(folder: Path) -> list[str]:
    return [shard.name for shard in weights.find_shards(folder)]


def test_find_shards_reads_as_transformers(tmp_path):
    put(tmp_path, "b.safetensors", "a.safetensors", "adapter_model.safetensors")
    assert found(tmp_path) == ["a.safetensors", "b.safetensors"]
    index(tmp_path, "b.safetensors", "b.safetensors")
    assert found(tmp_path) == ["b.safetensors"]
    put(tmp_path, "model.safetensors")
    assert found(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "x/m.safetensors", "/m.safetensors", "..", "x\\m"]
)
def test_find_shards_index_leads_out_of_the_folder(tmp_path, name):
    put(tmp_path, "in/a.safetensors", "evil.safetensors", "in/x/m.safetensors")
    with pytest.raises(ValueError, match="which is not a file in the same folder"):
        weights.find_shards(index(tmp_path / "in", "a.safetensors", name))


@pytest.mark.slow
@given(
    st.binary()
    | st.recursive(st.none() | st.text(), st.lists).map(
        lambda found: json.dumps({"weight_map": found}).encode()
    )
)
def test_find_shards_unreadable_index(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not an index of weights"):
        weights.find_shards(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"{", b"\xff", b"null"])
def test_read_header_other_format(tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        shards.read_header(path)


LIES = {
    "overlap": lambda header: header["b"].update(data_offsets=[8, 24]),
    "gap": lambda header: header["b"].update(data_offsets=[20, 36]),
    "beyond the end": lambda header: header["b"].update(data_offsets=[16, 40]),
    "backwards": lambda header: header["b"].update(data_offsets=[32, 16]),
    "negative": lambda header: header["a"].update(data_offsets=[-16, 16]),
    "longer shape": lambda header: header["a"].update(shape=[5]),
    "negative shape": lambda header: header["a"].update(shape=[-4]),
    "other dtype": lambda header: header["a"].update(dtype="F16"),
    "unknown dtype": lambda header: header["a"].update(dtype="F7"),
    "no dtype": lambda header: header["a"].pop("dtype"),
    "a number": lambda header: header.update(a=3),
    "one tensor less": lambda header: header.pop("b"),
    "one tensor more": lambda header: header.update(c=header["a"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_read_header_that_lies(tmp_path, lie):
    """Two tensors of four numbers in float32, 16 bytes each."""
    path = tmp_path / "model.safetensors"
    header = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [start, start + 16]}
        for name, start in (("a", 0), ("b", 16))
    }
    LIES[lie](header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    with pytest.raises(ValueError, match=r"is cut short or damaged \(.+\): download"):
        shards.read_header(path)


def test_find_shards_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="lama does not exist"):
        weights.find_shards(tmp_path / "lama")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_convert_bin_by_the_printed_command(tmp_path, parts, tied):
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
    with pytest.raises(FileNotFoundError, match="holds no safetensors") as error:
        weights.find_shards(folder)
    command = shlex.split(str(error.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    files = weights.find_shards(folder)
    written = dict(item for file in files for item in load_file(file).items())
    assert len(files) == parts and written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    for file in folder.glob("*.bin*"):
        file.unlink()
    after = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("size", "free", "message"),
    [
        (3 << 20, 1 << 20, "needs 3.0 MiB, .* has 1.0 MiB free"),
        (27 << 29, 300 << 20, "needs 13.5 GiB, .* has 300.0 MiB free"),
    ],
)
def test_check_disk_message(tmp_path, monkeypatch, size, free, message):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free))
    with pytest.raises(OSError, match=f"The model {message}"):
        shards.check_disk(tmp_path, size, "The model")


def test_read_blocks(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"b": torch.arange(5), "a": torch.ones(2, 3)}, path)
    entries = dict(shards.tensors_of(path))
    assert entries["a"]["shape"] == [2, 3] and set(entries) == {"a", "b"}
    _, begin = shards.read_header(path)
    with path.open("rb") as file:
        file.seek(begin + entries["b"]["data_offsets"][0])
        blocks = list(shards.read_blocks(file, 40, 16, path))
        assert [len(block) for block in blocks] == [16, 16, 8]
        content = torch.frombuffer(b"".join(blocks), dtype=torch.int64)
        assert content.tolist() == list(range(5))
        with pytest.raises(ValueError, match="cut short"):
            list(shards.read_blocks(file, 1 << 20, 16, path))
