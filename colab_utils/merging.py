"""Merge a LoRA adapter into its base, some rows at a time: W + (alpha / r) B A."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from colab_utils import recipes, runtime, storage
from colab_utils.adapters import Update, read_adapter

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

BLOCK = 2 << 20  # bytes that are read, changed and written at a time: in the cache
AHEAD = 16 << 20  # bytes that may wait to be written
# What transformers quantises: every linear layer but the head.
QUANTISED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


def merged_weight(weight: torch.Tensor, update: Update, first: int = 0) -> torch.Tensor:
    """W + scale B A, computed in 32 bits and rounded once to the dtype of W.

    `weight` may be some rows of W, from row `first` on. Source: Hu et al. 2021,
    section 4.
    """
    import torch

    rows = slice(first, first + len(weight))
    out = (update.b[rows] @ update.a).mul_(update.scale).add_(weight)
    if update.lengths is not None:
        out.mul_((update.lengths[rows] / torch.linalg.norm(out, dim=1)).view(-1, 1))
    return out.to(weight.dtype)


def dequantised(
    weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """What QLoRA trained on: W in 4 bits (NF4, constants quantised too) and back.

    Bit for bit what bitsandbytes makes of the whole weight, but a part at a time; of
    rows of W where `scales` has the constants of these. On a GPU where there is one,
    for there the weight was quantised when it was loaded.
    """
    import bitsandbytes.functional as bnb
    import torch

    if scales is None:
        scales = _quantised(_largest(weight))
    out, part = torch.empty_like(weight).view(-1, 64), max(1, BLOCK // 64)
    pieces = (t.split(part) for t in (out, weight.view(-1, 64), scales))
    for place, piece, some in zip(*pieces, strict=True):
        packed, state = bnb.quantize_4bit(
            piece.to(scales.device), blocksize=64, quant_type="nf4"
        )
        state.absmax = some
        place.copy_(bnb.dequantize_4bit(packed, state))
    return out.view(weight.shape)


def _largest(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each 64 weights, their constant, where it is made."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pieces = weight.view(-1, 64).split(max(1, BLOCK // 64))
    return torch.cat([p.to(device).abs().amax(1).float() for p in pieces])


def _quantised(absmax: torch.Tensor) -> torch.Tensor:
    """The constants of a whole weight as 8 bits hold them (double quantisation)."""
    import bitsandbytes.functional as bnb

    offset = absmax.mean()
    small, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    return bnb.dequantize_blockwise(small, state) + offset


def merge(base: Path, adapter: Path, out: Path, weights: str = "original") -> Path:
    """Write a model folder: `base` with `adapter` merged in, config and tokenizer.

    `weights` are the base's "original" ones, or "dequantized": as 4 bits hold them,
    which is what QLoRA trained beside. Reads and writes safetensors some rows at a
    time: memory does not grow with the model. Written beside `out` and moved there at
    the end; a run that was stopped or killed goes on after its last finished file.
    Raises ValueError when the adapter doesn't fit the base, FileExistsError when `out`
    is no model's folder or holds the base, and OSError when the disk is too small.
    """
    import torch

    if weights not in ("original", "dequantized"):
        raise ValueError(f"weights = {weights!r}; it can be: original, dequantized.")
    updates, replaced = read_adapter(adapter)
    shards = storage.find_shards(base)
    _check_fit(shards, updates, replaced)
    runtime.restore(out)
    _check_replaceable(out, base, adapter)
    part = out.with_name(f".{out.name}.part")
    made_of, note = _made_of(shards, adapter, weights), part / "made_of.json"
    if part.exists() and not (note.is_file() and note.read_text("utf-8") == made_of):
        shutil.rmtree(part)  # of a run with other files
    finished = [shard for shard in shards if (part / shard.name).exists()]
    size, done = _size(shards), _size(finished)
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.check_disk(out.parent, size - done, "The merged model")
    part.mkdir(exist_ok=True)
    note.write_text(made_of, encoding="utf-8")
    if finished:
        print(f"going on: {len(finished)} of {len(shards)} files are merged already")
    options = {"total": size, "initial": done, "unit": "B", "unit_scale": True}
    grid, threads = weights == "dequantized", torch.get_num_threads()
    # Threads that wait for each other spin, and the one that writes needs their core.
    torch.set_num_threads(threads if grid else 1)
    try:
        with runtime.progress(None, "merging", **options) as bar:
            for shard in shards:
                if shard not in finished:
                    half = part / "unfinished"
                    _merge_shard(shard, half, updates, replaced, grid, bar)
                    half.rename(part / shard.name)
        _copy_others(base, adapter, part)
        runtime.replace(part, out)
    except KeyboardInterrupt:
        print(f"stopped: the next run goes on from {part}, or delete that folder")
        raise
    except Exception:  # a full disk, for one, gets its space back
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)
    return out


def _made_of(shards: list[Path], adapter: Path, weights: str) -> str:
    """What a merge depends on, as text to compare with that of a run that was cut."""
    # The base is too large to be hashed each time.
    states = [(str(shard.resolve()), shard.stat()) for shard in shards]
    base = [(path, state.st_size, state.st_mtime_ns) for path, state in states]
    files = sorted(adapter.glob("adapter_*"))
    hashes = {file.name: recipes.sha256(file) for file in files}
    return json.dumps({"base": base, "adapter": hashes, "weights": weights})


def _size(shards: list[Path]) -> int:
    return sum(shard.stat().st_size for shard in shards)


def _check_replaceable(out: Path, base: Path, adapter: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise FileExistsError(
            f"{out} holds something else than a model, and would be replaced. Choose "
            "another MODEL_NAME, or move that folder away."
        )
    for folder in (base.resolve(), adapter.resolve()):
        if out.resolve() in (folder, *folder.parents):
            raise FileExistsError(
                f"{out} holds what is merged, and would be replaced. Choose another "
                "MODEL_NAME."
            )


def _copy_others(base: Path, adapter: Path, part: Path) -> None:
    """The base's config and the adapter's tokenizer."""
    for file in (*base.glob("*.json"), *base.glob("tokenizer.model")):
        # Not how the base was made, nor the index of weights in another format.
        others = ("recipe.json", "made_of.json", "pytorch_model.bin.index.json")
        if file.name not in others:
            shutil.copyfile(file, part / file.name)
    for file in adapter.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(file, part / file.name)


def _check_fit(
    shards: list[Path], updates: dict[str, Update], replaced: dict[str, torch.Tensor]
) -> None:
    found = dict(item for shard in shards for item in storage.tensors_of(shard))
    missing = sorted({*updates, *replaced} - set(found))
    if missing:
        tied = "; its head is its embeddings" if "lm_head" in missing[0] else ""
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}{tied}): is it the base that the adapter was trained on?"
        )
    wanted = {n: (u.b.shape[0], u.a.shape[1]) for n, u in updates.items()}
    wanted |= {name: tuple(tensor.shape) for name, tensor in replaced.items()}
    for name, shape in wanted.items():
        dtype, there = found[name]["dtype"], tuple(found[name]["shape"])
        if dtype not in storage.DTYPES:
            raise ValueError(
                f"{name} is stored as {dtype} in the base: merge into the base's "
                "16-bit weights, not into quantised ones."
            )
        if there != shape:
            raise ValueError(
                f"{name} is {there} in the base, the adapter wants {shape}: is it the "
                "base that the adapter was trained on?"
            )


def _merge_shard(
    source: Path,
    target: Path,
    updates: dict[str, Update],
    replaced: dict[str, torch.Tensor],
    grid: bool,
    bar: tqdm,
) -> None:
    """Copy a safetensors file, changing the weights that have an adapter.

    With `grid` the quantised weights are first brought to what 4 bits can hold.
    """
    _, begin = storage.header(source)
    # One thread writes what was changed while the next rows are read and changed.
    with (
        source.open("rb") as old,
        target.open("wb") as new,
        ThreadPoolExecutor(1) as writer,
    ):
        new.write(old.read(begin))
        written: deque[tuple[Future, int]] = deque()
        for name, entry in storage.tensors_of(source):
            first, last = entry["data_offsets"]
            old.seek(begin + first)
            rounded = grid and QUANTISED.fullmatch(name)
            if name in replaced:
                chunks = iter([_bytes(replaced[name], _dtype(entry))])
            elif name in updates or rounded:
                chunks = _changed(old, source, entry, updates.get(name), bool(rounded))
            else:
                chunks = storage.read_blocks(old, last - first, BLOCK, source)
            place = begin + first
            for data in chunks:
                while sum(size for _, size in written) > AHEAD:
                    written.popleft()[0].result()
                written.append((writer.submit(_write, new, place, data), len(data)))
                place += len(data)
                bar.update(len(data))
        for one, _ in written:
            one.result()
        new.flush()
        os.fsync(new.fileno())  # it will count as finished, after a power cut too


def _write(file: BinaryIO, place: int, data: Any) -> None:
    file.seek(place)
    file.write(data)


def _dtype(entry: dict[str, Any]) -> torch.dtype:
    import torch

    return getattr(torch, storage.DTYPES[entry["dtype"]])


def _bytes(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    import torch

    return tensor.to(dtype).contiguous().view(torch.uint8).flatten().numpy().data


def _changed(
    file: BinaryIO, path: Path, entry: dict[str, Any], update: Update | None, grid: bool
) -> Iterator[bytearray]:
    """A weight's new bytes, some rows at a time."""
    import torch

    first, last = entry["data_offsets"]
    width = (last - first) // entry["shape"][0]  # bytes of a row
    # Parts of equal size: a product of very few rows would be summed in another order.
    height, row = entry["shape"][0], 0
    parts = math.ceil(height / max(64, BLOCK // width))
    step = math.ceil(height / parts)
    block, scales = step * width, None
    if grid:
        if step * math.prod(entry["shape"][1:]) % 64:  # parts would cut its blocks
            block = last - first
        # Its constants are quantised together, so the weight is read twice.
        place = file.tell()
        found = storage.read_blocks(file, last - first, block, path)
        dtype = _dtype(entry)
        scales = [_largest(torch.frombuffer(data, dtype=dtype)) for data in found]
        scales = _quantised(torch.cat(scales))
        file.seek(place)
    for data in storage.read_blocks(file, last - first, block, path):
        rows = torch.frombuffer(data, dtype=_dtype(entry)).view(-1, *entry["shape"][1:])
        if grid:
            count = rows.numel() // 64
            rows.copy_(dequantised(rows, scales[:count]))
            scales = scales[count:]
        for i in range(0, len(rows) if update else 0, step):
            some = rows[i : i + step]
            some.copy_(merged_weight(some, update, row + i))
        row += len(rows)
        yield data
