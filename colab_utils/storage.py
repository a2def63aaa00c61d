"""Weights as they are stored: safetensors files, read a block at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def find_shards(base: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises FileNotFoundError when there are none, or when one of them is missing.
    """
    index = base / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = [base / name for name in sorted(set(names))]
    else:
        shards = sorted(base.glob("*.safetensors"))
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise FileNotFoundError(
            f"{base} lacks {len(missing)} of {len(shards)} weight files (the first is "
            f"{missing[0]}): download the model again."
        )
    if not shards:
        raise FileNotFoundError(
            f"{base} holds no safetensors weights. Where it has .bin files, write it "
            'anew:\npython -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{base}', dtype='auto').save_pretrained('NEW FOLDER')\""
        )
    return shards


def header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins, in bytes.

    Raises ValueError for a file that is none, or has none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        return json.loads(text), 8 + length
    except ValueError as error:  # empty, cut, or a pointer of Git LFS
        raise ValueError(
            f"{path} is no safetensors file ({size:,} bytes): download it again (after "
            "`git clone`, `git lfs pull`)."
        ) from error


def tensors_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and {"dtype", "shape", "data_offsets"} of each tensor, in file order."""
    entries, _ = header(path)
    entries = ((n, e) for n, e in entries.items() if n != "__metadata__")
    return iter(sorted(entries, key=lambda item: item[1]["data_offsets"][0]))


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
            f"{what} needs {size / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB "
            "free. Free some, or set WORKSPACE to a larger disk."
        )
