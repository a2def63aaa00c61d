"""Merge an adapter into one safetensors file, some rows at a time: W + scale B A."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.weights import nf4
from colab_utils.weights.adapters import EMBEDDINGS, Update
from colab_utils.weights.merge_layout import layout_of
from colab_utils.weights.shards import (
    Entry,
    entry_dtype,
    read_blocks,
    read_header,
    tensors_of,
)

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

BLOCK = 2 << 20  # bytes that are read, changed and written at a time; fits a CPU cache
AHEAD = 16 << 20  # bytes that may wait to be written


@dataclass(frozen=True)
class Changes:
    """The changes that a merge makes to the weights of the base.

    With `quantized_in` the base's linear weights are first quantized to NF4 in that
    dtype and dequantized, because QLoRA trained on the dequantized weights. With
    `to_float16` weights in bfloat16 are written as float16.
    """

    updates: dict[str, Update]
    replaced: dict[str, torch.Tensor]
    quantized_in: torch.dtype | None = None
    to_float16: bool = False

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the dtype in which a weight of the base is written."""
        import torch

        stored = entry_dtype(entry)
        half = self.to_float16 and stored == torch.bfloat16
        return torch.float16 if half else stored

    @property
    def vocab(self) -> int | None:
        """The number of embeddings if the adapter replaces them, else None."""
        table = self.replaced.get(EMBEDDINGS)
        return None if table is None else len(table)


def merged_weight(weight: torch.Tensor, update: Update, first: int = 0) -> torch.Tensor:
    """Return W + scale B A in float32 (Hu et al. 2021, section 4.1).

    `weight` may be some rows of W: they begin at row `first`. For DoRA the rows are
    then scaled to their trained lengths.
    """
    import torch

    rows = slice(first, first + len(weight))
    out = (update.b[rows] @ update.a).mul_(update.scale).add_(weight)
    if update.lengths is not None:
        out.mul_((update.lengths[rows] / torch.linalg.norm(out, dim=1)).view(-1, 1))
    return out


def merge_shard(source: Path, target: Path, changes: Changes, bar: tqdm) -> None:
    """Write the safetensors file `target`: `source` with its weights merged.

    Raises ValueError when a merged weight is not finite or `source` is cut short.
    """
    _, begin = read_header(source)
    layout = layout_of(source, changes.replaced, changes.to_float16)
    # One thread writes the last rows while the next rows are read and changed.
    with (
        source.open("rb") as old,
        target.open("wb") as new,
        ThreadPoolExecutor(1) as writer,
    ):
        new.write(layout.header)
        pending: deque[tuple[Future[None], int]] = deque()
        for name, entry in tensors_of(source):
            old.seek(begin + entry["data_offsets"][0])
            place = layout.places[name]
            for data in _merged_bytes(old, source, name, entry, changes):
                while sum(size for _, size in pending) > AHEAD:
                    pending.popleft()[0].result()
                pending.append((writer.submit(_write, new, place, data), len(data)))
                place += len(data)
                bar.update(len(data))
        for write, _ in pending:
            write.result()
        new.flush()
        os.fsync(new.fileno())  # a finished file must survive a power cut


def _write(file: BufferedWriter, place: int, data: bytearray | memoryview) -> None:
    file.seek(place)
    file.write(data)


def _merged_bytes(
    file: BufferedReader, path: Path, name: str, entry: Entry, changes: Changes
) -> Iterator[bytearray | memoryview]:
    """Yield the new bytes of the tensor at which `file` stands."""
    quantized = changes.quantized_in and nf4.QUANTIZED.fullmatch(name)
    stored = entry_dtype(entry)
    if name in changes.replaced:
        tensor = changes.replaced[name]
        if name in changes.updates:  # LoRA of resized embeddings
            tensor = merged_weight(tensor, changes.updates[name])
        yield _replaced_bytes(name, tensor, changes.dtype(entry))
    elif name in changes.updates or quantized or changes.dtype(entry) != stored:
        quantized_in = changes.quantized_in if quantized else None
        yield from _changed_rows(file, path, name, entry, changes, quantized_in)
    else:
        first, last = entry["data_offsets"]
        for data in read_blocks(file, last - first, BLOCK, path):
            _check_copied(name, data, stored, path)
            yield data


def _replaced_bytes(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    import torch

    tensor = tensor.to(dtype).contiguous()
    _check_finite(name, tensor)
    return tensor.view(torch.uint8).flatten().numpy().data


def _changed_rows(
    file: BufferedReader,
    path: Path,
    name: str,
    entry: Entry,
    changes: Changes,
    quantized_in: torch.dtype | None,
) -> Iterator[bytearray]:
    """Yield the new bytes of a changed weight, some rows at a time."""
    import torch

    update, written = changes.updates.get(name), changes.dtype(entry)

    first, last = entry["data_offsets"]
    size, dtype, shape = last - first, entry_dtype(entry), entry["shape"]
    row_size = size // shape[0]
    # Parts of equal size: torch sums a product of very few rows in another order.
    parts = math.ceil(shape[0] / max(64, BLOCK // row_size))
    step = math.ceil(shape[0] / parts)
    block, row, scales = step * row_size, 0, torch.empty(0)
    if quantized_in:
        if step * math.prod(shape[1:]) % 64:  # parts would cut the blocks of NF4
            block = size
        scales = _scales(file, path, size, block, dtype, quantized_in)
    for data in read_blocks(file, size, block, path):
        stored = torch.frombuffer(data, dtype=dtype).view(-1, *shape[1:])
        new = torch.frombuffer(data, dtype=written).view(-1, *shape[1:])
        weight = stored if dtype == written else stored.float()
        if quantized_in:
            count = stored.numel() // 64
            weight = nf4.dequantized(stored, quantized_in, scales[:count])
            scales = scales[count:]
        for i in range(0, len(stored), step):
            target, merged = new[i : i + step], weight[i : i + step]
            if update:
                merged = merged_weight(merged, update, row + i)
            target.copy_(merged)  # rounds once
            _check_finite(name, target)
        row += len(stored)
        yield data


def _scales(
    file: BufferedReader,
    path: Path,
    size: int,
    block: int,
    dtype: torch.dtype,
    quantized_in: torch.dtype,
) -> torch.Tensor:
    """Return the quantization scales of a weight; keep the position in `file`.

    The scales are quantized together, so this reads the whole weight.
    """
    import torch

    place = file.tell()
    found = []
    for data in read_blocks(file, size, block, path):
        rows = torch.frombuffer(data, dtype=dtype)
        found.append(nf4.block_maxima(rows, quantized_in))
    file.seek(place)
    return nf4.quantize_scales(torch.cat(found))


def _check_copied(name: str, data: bytearray, dtype: torch.dtype, path: Path) -> None:
    import torch

    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return
    copied = torch.frombuffer(data, dtype=dtype)
    if not (copied.sum().isfinite() or copied.isfinite().all()):
        raise ValueError(
            f"{name} in {path} holds NaN or infinity, and the adapter does not change "
            "it: the base is damaged. Download it again."
        )


def _check_finite(name: str, merged: torch.Tensor) -> None:
    # The sum is the faster test: if it is finite, every number is. It may overflow even
    # if every number is finite, so an infinite sum leads to the slower test.
    if not (merged.sum().isfinite() or merged.isfinite().all()):
        raise ValueError(
            f"{name} is not finite when merged: the adapter holds NaN or infinity, or "
            f"numbers that are too large for {merged.dtype}. Train it again (a lower "
            "LEARNING_RATE?), or merge into a base in float32."
        )
