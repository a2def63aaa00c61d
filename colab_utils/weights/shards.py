"""Weights as they are stored: safetensors files, read a block at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def find_shards(base: Path) -> list[Path]:
    """The safetensors files of a model folder, those that transformers would read.

    Raises FileNotFoundError when there are none, or when one of them is missing, and
    ValueError for an index that can't be read or leads out of the folder.
    """
    if not base.is_dir():
        raise FileNotFoundError(f"{base} does not exist, or is no folder.")
    whole, index = base / "model.safetensors", base / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        shards = [base / name for name in _indexed(index)]
    else:  # what an adapter has beside it is no weight of the base
        files = sorted(base.glob("*.safetensors"))
        shards = [file for file in files if not file.name.startswith("adapter_")]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise FileNotFoundError(
            f"{base} lacks {len(missing)} of {len(shards)} weight files (the first is "
            f"{missing[0]}): download the model again."
        )
    if not shards:
        raise FileNotFoundError(no_safetensors(str(base)))
    return shards


def _indexed(index: Path) -> list[str]:
    """The files that an index names; each must lie beside it."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weights.values()))
        outside = [name for name in names if not re.fullmatch(r"[^/\\]+\w", name)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of weights: download the model again."
        ) from error
    if outside:
        raise ValueError(
            f"{index} names {outside[0]}, which is no file beside it: move all weights "
            "into one folder."
        )
    return names


def no_safetensors(name: str) -> str:
    """What to tell the reader of a model that has none; `name` is its folder or id."""
    return (
        f"{name} holds no safetensors weights. Where it has .bin files, write them "
        "anew, beside the old ones and one at a time, and run this again:\n"
        'python -c "from colab_utils import models; from colab_utils.weights import '
        "shards; "
        f"shards.convert(models.download('{name}', '*.bin'))\""
    )


def convert(folder: Path) -> None:
    """Write a model folder's .bin files as safetensors beside them, one at a time."""
    import torch
    from safetensors.torch import save_file

    def new(name: str) -> str:
        return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")

    index = folder / "pytorch_model.bin.index.json"
    if index.exists():  # first: it tells which files a killed run lacks
        text = new(index.read_text(encoding="utf-8"))
        (folder / new(index.name)).write_text(text, encoding="utf-8")
    for file in sorted(folder.glob("pytorch_model*.bin")):
        # Read when it is used, and no code is run.
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        places: set[int] = set()
        for name, tensor in tensors.items():
            shared = tensor.data_ptr() in places  # a tied weight, written twice
            places.add(tensor.data_ptr())
            tensors[name] = tensor.clone() if shared else tensor.contiguous()
        save_file(tensors, folder / new(file.name), metadata={"format": "pt"})
        print(new(file.name))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no other process do the same in `folder`; RuntimeError when one does.

    The lock ends with the process. Windows has no such lock: there nothing is noticed.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise RuntimeError(
            f"Something else is writing into {folder}: wait for it, or stop it."
        ) from error
    except OSError:
        print(f"{folder} can't be locked: let nothing else write there meanwhile")
    try:
        yield
    finally:
        os.close(place)


def header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins, in bytes.

    Raises ValueError for a file that is none, or has none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        return dict(json.loads(text).items()), 8 + length
    except (ValueError, AttributeError) as error:  # empty, cut, or of Git LFS
        raise ValueError(
            f"{path} is no safetensors file ({size:,} bytes): download it again (after "
            "`git clone`, `git lfs pull`)."
        ) from error


def tensors_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and {"dtype", "shape", "data_offsets"} of each tensor, in file order."""
    entries, _ = header(path)
    entries = ((n, e) for n, e in entries.items() if n != "__metadata__")
    return iter(sorted(entries, key=lambda item: item[1]["data_offsets"][0]))


def dtype(entry: dict[str, Any]) -> torch.dtype:
    """The dtype of a tensor in a header, as torch's object."""
    import torch

    return getattr(torch, DTYPES[entry["dtype"]])


def read_blocks(
    file: BinaryIO, size: int, block: int, path: Path
) -> Iterator[bytearray]:
    """The next `size` bytes of a file, `block` at a time."""
    while size:
        data = bytearray(min(size, block))
        if file.readinto(data) != len(data):
            raise ValueError(f"{path} is cut short: download the model again.")
        yield data
        size -= len(data)


def check_disk(folder: Path, size: int, what: str) -> None:
    """Raise OSError when `folder` has no room for `size` bytes of `what`."""
    free = shutil.disk_usage(folder).free
    if free < size * 1.02:
        raise OSError(
            f"{what} needs {_size(size)}, {folder} has {_size(free)} free. Free some, "
            "or set WORKSPACE to a larger disk."
        )


def _size(count: int) -> str:
    gib = count / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"
