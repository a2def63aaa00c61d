"""Lay out a merged safetensors file: its header, and the place of each tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from colab_utils.weights.shards import read_header, tensors_of

if TYPE_CHECKING:
    import torch


class Layout(NamedTuple):
    """The first bytes of a file, the place of each tensor in it, and its size."""

    header: bytes
    places: dict[str, int]  # bytes from the start of the file
    size: int


def layout_of(
    source: Path, replaced: dict[str, torch.Tensor], to_float16: bool = False
) -> Layout:
    """Return the layout of `source` with some of its tensors replaced.

    With `to_float16` bfloat16 tensors become float16. The layout is that of `source`
    unless a tensor has another shape or dtype.
    """
    entries, begin = read_header(source)
    resized = [
        name
        for name in entries
        if name in replaced and list(replaced[name].shape) != entries[name]["shape"]
    ]
    with source.open("rb") as file:
        header = file.read(begin)
    converted = [n for n in entries if to_float16 and entries[n]["dtype"] == "BF16"]
    if not resized and not converted:
        offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
        places = {name: begin + first for name, (first, _) in offsets.items()}
        return Layout(header, places, source.stat().st_size)
    fields: dict[str, Any] = json.loads(header[8:])
    starts: dict[str, int] = {}
    end = 0
    for name, entry in tensors_of(source):
        starts[name], (first, last) = end, entry["data_offsets"]
        shape, size = entry["shape"], last - first
        if name in resized:
            size = size // math.prod(shape) * replaced[name].numel()
            shape = list(replaced[name].shape)
        if name in converted:
            fields[name]["dtype"] = "F16"
        end += size
        fields[name] |= {"shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    header = len(text).to_bytes(8, "little") + text
    places = {name: len(header) + start for name, start in starts.items()}
    return Layout(header, places, len(header) + end)
