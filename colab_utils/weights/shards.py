"""Find and read the safetensors files of a model, one block of bytes at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

# The dtypes of floating-point weights: safetensors' name and torch's.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


class Entry(TypedDict):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]  # first and last byte + 1, counted from the first tensor


def find_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder that transformers would load.

    Raises FileNotFoundError when the folder has none or lacks one of them, and
    ValueError for an index that can't be read or names a file outside the folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, or is not a folder.")
    single, index = (folder / f"model.safetensors{end}" for end in ("", ".index.json"))
    if single.exists():
        return [single]
    if index.exists():
        shards = [folder / name for name in _indexed(index)]
    else:  # an adapter may lie in the same folder
        files = sorted(folder.glob("*.safetensors"))
        shards = [file for file in files if not file.name.startswith("adapter_")]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files (the first "
            f"is {missing[0]}): download the model again."
        )
    if not shards:
        raise FileNotFoundError(no_safetensors(str(folder)))
    return shards


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names; all must be in the folder of the index."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weights.values()))
        outside = [name for name in names if not re.fullmatch(r"[^/\\]+\w", name)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not an index of weights: download the model again."
        ) from error
    if outside:
        raise ValueError(
            f"{index} names {outside[0]}, which is not a file in the same folder: move "
            "all weights into one folder."
        )
    return names


def no_safetensors(name: str) -> str:
    """Return the message about a model (folder or id) without safetensors files."""
    return (
        f"{name} holds no safetensors weights. If it has .bin files, convert them (one "
        "at a time; the old files stay), then run this again:\n"
        'python -c "from colab_utils import models, weights; '
        f"weights.convert_bin(models.download('{name}', '*.bin'))\""
    )


def convert_bin(folder: Path) -> None:
    """Write each .bin file of a model folder as safetensors, next to the .bin file."""
    import torch
    from safetensors.torch import save_file

    def renamed(name: str) -> str:
        return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")

    # The index comes first: find_shards then sees which files a killed run lacks.
    index = folder / "pytorch_model.bin.index.json"
    if index.exists():
        text = renamed(index.read_text(encoding="utf-8"))
        (folder / renamed(index.name)).write_text(text, encoding="utf-8")
    for file in sorted(folder.glob("pytorch_model*.bin")):
        # mmap reads a tensor when it is used; weights_only runs no code from the file.
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        places: set[int] = set()
        for name, tensor in tensors.items():
            shared = tensor.data_ptr() in places  # a tied weight, stored twice
            places.add(tensor.data_ptr())
            tensors[name] = tensor.clone() if shared else tensor.contiguous()
        save_file(tensors, folder / renamed(file.name), metadata={"format": "pt"})
        print(renamed(file.name))


def read_header(path: Path) -> tuple[dict[str, Entry], int]:
    """Return the entries of a safetensors file's header, and where its data begins.

    Raises ValueError for a file of another format, for one that is cut short, and for a
    header that contradicts itself: tensors that overlap, that leave gaps, or whose
    length is not that of their shape and dtype.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        entries = dict(json.loads(text).items())
    except (ValueError, AttributeError) as error:  # empty, truncated, a Git LFS pointer
        raise ValueError(
            f"{path} is not a safetensors file ({size:,} bytes): download it again "
            "(after `git clone`, `git lfs pull`)."
        ) from error
    entries.pop("__metadata__", None)
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}): download the model again."
        ) from error
    return entries, 8 + length


def tensors_of(path: Path) -> list[tuple[str, Entry]]:
    """Return name and header entry of each tensor, in the order of their data."""
    entries, _ = read_header(path)
    return sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0])


def all_entries(shards: list[Path]) -> dict[str, Entry]:
    """Return the header entry of each tensor in several files."""
    return {name: entry for shard in shards for name, entry in tensors_of(shard)}


def entry_dtype(entry: Entry) -> torch.dtype:
    """Return the dtype of a header entry as torch's object."""
    import torch

    return getattr(torch, DTYPES[entry["dtype"]])


def read_blocks(
    file: BufferedReader, size: int, block: int, path: Path
) -> Iterator[bytearray]:
    """Yield the next `size` bytes of a file, `block` bytes at a time."""
    while size:
        data = bytearray(min(size, block))
        if file.readinto(data) != len(data):
            raise ValueError(f"{path} is cut short: download the model again.")
        yield data
        size -= len(data)


def check_disk(folder: Path, size: int, what: str) -> None:
    """Raise OSError when the disk of `folder` has less than `size` bytes free.

    `what` names the thing to be written, for the message.
    """
    free = shutil.disk_usage(folder).free
    if free < size * 1.02:
        raise OSError(
            f"{what} needs {_mib(size)}, {folder} has {_mib(free)} free. Free some, "
            "or set WORKSPACE to a larger disk."
        )


def _mib(count: int) -> str:
    gib = count / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"
