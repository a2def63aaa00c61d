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

from colab_utils import recipe, runtime, workspace
from colab_utils.weights import nf4
from colab_utils.weights import shards as storage
from colab_utils.weights.adapters import EMBEDDINGS, Update, check_fit, read_adapter

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

BLOCK = 2 << 20  # bytes that are read, changed and written at a time: in the cache
AHEAD = 16 << 20  # bytes that may wait to be written
NOTE = "made_of.json"  # what a merged model was made of
KEPT = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*", "USE_POLICY*")


def merged_weight(weight: torch.Tensor, update: Update, first: int = 0) -> torch.Tensor:
    """W + scale B A in 32 bits, not yet rounded to the dtype of W.

    `weight` may be some rows of W, from row `first` on. Source: Hu et al. 2021,
    section 4.
    """
    import torch

    rows = slice(first, first + len(weight))
    out = (update.b[rows] @ update.a).mul_(update.scale).add_(weight)
    if update.lengths is not None:
        out.mul_((update.lengths[rows] / torch.linalg.norm(out, dim=1)).view(-1, 1))
    return out


def merge(base: Path, adapter: Path, out: Path, weights: str = "original") -> Path:
    """Write a model folder: `base` with `adapter` merged in, config and tokenizer.

    `weights` are the base's "original" ones, or "dequantized": as 4 bits hold them,
    which is what QLoRA trained beside. Reads and writes safetensors some rows at a
    time: memory does not grow with the model. Written beside `out` and moved there at
    the end; a run that was stopped or killed goes on after its last finished file, and
    what is merged already stays. Raises ValueError when the adapter doesn't fit the
    base or a merged weight is not finite, FileExistsError when `out` is no model that
    was merged here or holds the base, RuntimeError when something else merges there,
    and OSError when the disk is too small.
    """
    import torch

    if weights not in ("original", "dequantized"):
        raise ValueError(f"weights = {weights!r}; it can be: original, dequantized.")
    base, adapter, out = Path(base), Path(adapter), Path(out).resolve()
    updates, replaced = read_adapter(adapter)
    shards, others = storage.find_shards(base), _others(base, adapter)
    check_fit(shards, updates, replaced)
    _tell_ids(others.get("tokenizer.json"), shards)
    grid = nf4.trained_dtype(shards, adapter) if weights == "dequantized" else None
    made_of = _made_of(shards, adapter, others, str(grid))
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.alone(out.parent):
        workspace.restore(out)
        _check_replaceable(out, base, adapter)
        if _is_made(out, made_of, shards, others):
            print(f"merged already: {out}")
            return out
        part = out.with_name(f".{out.name}.part")
        finished = _begin(part, made_of, shards)
        size, done = _size(shards), _size(finished)
        beside = " (the older one stays until it is whole)" if out.exists() else ""
        what = f"The merged model{beside}"
        storage.check_disk(out.parent, size - done, what)
        part.mkdir(exist_ok=True)
        (part / NOTE).write_text(made_of, encoding="utf-8")
        options = {"total": size, "initial": done, "unit": "B", "unit_scale": True}
        threads = torch.get_num_threads()
        # Threads that wait for each other spin, and the one that writes needs a core.
        torch.set_num_threads(threads if grid else 1)
        try:
            with runtime.progress(None, "merging", **options) as bar:
                for shard in shards:
                    if shard not in finished:
                        half = part / "unfinished"
                        _merge_shard(shard, half, updates, replaced, grid, bar)
                        half.rename(part / shard.name)
            for name, file in others.items():
                shutil.copyfile(file, part / name)
            workspace.replace(part, out)
        except KeyboardInterrupt:
            print(f"stopped: the next run goes on from {part}, or delete that folder")
            raise
        except Exception:  # a full disk, for one, gets its space back
            workspace.discard(part, ignore_errors=True)
            raise
        finally:
            torch.set_num_threads(threads)
    return out


def _made_of(
    shards: list[Path], adapter: Path, others: dict[str, Path], grid: str
) -> str:
    """What a merge depends on, as text to compare with that of another run."""
    base = []
    for shard in shards:  # too large to be hashed each time
        path, state = shard.resolve(), shard.stat()
        # The Hub's cache names a file by its hash; downloaded again it is the same.
        hashed = re.fullmatch("[0-9a-f]{64}", path.name)
        base.append((str(path), state.st_size, 0 if hashed else state.st_mtime_ns))
    files = others | {file.name: file for file in sorted(adapter.glob("adapter_*"))}
    hashes = {name: recipe.sha256(file) for name, file in files.items()}
    return json.dumps({"base": base, "files": hashes, "grid": grid})


def _is_made(
    out: Path, made_of: str, shards: list[Path], others: dict[str, Path]
) -> bool:
    """Whether `out` is the model that would be made, and whole."""
    note, sizes = out / NOTE, {shard.name: shard.stat().st_size for shard in shards}
    return (
        note.is_file()
        and note.read_text("utf-8") == made_of
        and all((out / name).is_file() for name in (*others, *sizes))
        and all((out / name).stat().st_size == size for name, size in sizes.items())
    )


def _begin(part: Path, made_of: str, shards: list[Path]) -> list[Path]:
    """The shards that an earlier run has merged into `part`; all else there goes."""
    note = part / NOTE
    if part.exists() and not (note.is_file() and note.read_text("utf-8") == made_of):
        workspace.discard(part)  # of a run with other files
    if (part / "unfinished").exists():  # its space is needed, see workspace.discard
        os.truncate(part / "unfinished", 0)
    finished = [shard for shard in shards if (part / shard.name).exists()]
    if finished:
        print(f"going on: {len(finished)} of {len(shards)} files are merged already")
    return finished


def _size(shards: list[Path]) -> int:
    return sum(shard.stat().st_size for shard in shards)


def _check_replaceable(out: Path, base: Path, adapter: Path) -> None:
    for folder in (base.resolve(), adapter.resolve()):
        if out in (folder, *folder.parents):
            raise FileExistsError(
                f"{out} holds what is merged, and would be replaced. Choose another "
                "MODEL_NAME."
            )
    ours = not out.exists() or (out / NOTE).is_file()
    if not ours and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} holds something else than a model that was merged here, and would "
            "be replaced. Choose another MODEL_NAME, or move it away."
        )


def _others(base: Path, adapter: Path) -> dict[str, Path]:
    """By its name: the base's config and licence, the tokenizer of the adapter."""
    found = {file.name: file for kind in KEPT for file in base.glob(kind)}
    # Not how the base was made, an adapter beside it, nor an index of other weights.
    wrong = ["recipe.json", NOTE, "adapter_", "pytorch_model"]
    if (base / "model.safetensors").exists():
        wrong.append("model.safetensors.index")
    starts = ("tokenizer", "special_tokens", "chat_template")
    its = {f.name: f for f in adapter.iterdir() if f.name.startswith(starts)}
    if "tokenizer_config.json" in its:  # an older template may be in that file
        wrong.append("chat_template")
    return {n: f for n, f in found.items() if not n.startswith(tuple(wrong))} | its


def _tell_ids(tokenizer: Path | None, shards: list[Path]) -> None:
    """Say so when the tokenizer has ids for which the model has no embedding."""
    found = dict(item for shard in shards for item in storage.tensors_of(shard))
    if tokenizer is None or EMBEDDINGS not in found:
        return
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).get_vocab().values()
    rows = found[EMBEDDINGS]["shape"][0]
    if max(ids, default=0) >= rows:
        print(
            f"the tokenizer has ids up to {max(ids):,}, the model {rows:,} embeddings: "
            "text with the last ones can't be computed, and no GGUF file be written"
        )


def _merge_shard(
    source: Path,
    target: Path,
    updates: dict[str, Update],
    replaced: dict[str, torch.Tensor],
    grid: torch.dtype | None,
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
            rounded = grid and nf4.QUANTISED.fullmatch(name)
            if name in replaced:
                chunks = _replacing(name, replaced[name], storage.dtype(entry))
            elif name in updates or rounded:
                dtype = grid if rounded else None
                chunks = _changed(old, source, name, entry, updates.get(name), dtype)
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


def _check_finite(name: str, merged: torch.Tensor) -> None:
    # A sum is finite unless a number isn't, or many are large: it is the quicker look.
    if not (merged.sum().isfinite() or merged.isfinite().all()):
        raise ValueError(
            f"{name} is not finite once merged: the adapter holds NaN or infinity, or "
            f"numbers that are too large for {merged.dtype}. Train it again (a lower "
            "LEARNING_RATE?), or merge into a base of 32 bits."
        )


def _replacing(
    name: str, tensor: torch.Tensor, dtype: torch.dtype
) -> Iterator[memoryview]:
    import torch

    tensor = tensor.to(dtype).contiguous()
    _check_finite(name, tensor)
    yield tensor.view(torch.uint8).flatten().numpy().data


def _changed(
    file: BinaryIO,
    path: Path,
    name: str,
    entry: dict[str, Any],
    update: Update | None,
    grid: torch.dtype | None,
) -> Iterator[bytearray]:
    """A weight's new bytes, some rows at a time."""
    import torch

    first, last = entry["data_offsets"]
    dtype, shape = storage.dtype(entry), entry["shape"]
    width = (last - first) // shape[0]  # bytes of a row
    # Parts of equal size: a product of very few rows would be summed in another order.
    parts = math.ceil(shape[0] / max(64, BLOCK // width))
    step = math.ceil(shape[0] / parts)
    block, scales, row = step * width, None, 0
    if grid:
        if step * math.prod(shape[1:]) % 64:  # parts would cut its blocks
            block = last - first
        # Its constants are quantised together, so the weight is read twice.
        place = file.tell()
        found = storage.read_blocks(file, last - first, block, path)
        tensors = (torch.frombuffer(data, dtype=dtype) for data in found)
        scales = nf4.held(torch.cat([nf4.largest(t, grid) for t in tensors]))
        file.seek(place)
    for data in storage.read_blocks(file, last - first, block, path):
        rows = torch.frombuffer(data, dtype=dtype).view(-1, *shape[1:])
        old = rows
        if grid:
            count = rows.numel() // 64
            old, scales = nf4.dequantised(rows, grid, scales[:count]), scales[count:]
        for i in range(0, len(rows), step):
            some, new = rows[i : i + step], old[i : i + step]
            if update:
                new = merged_weight(new, update, row + i)
            some.copy_(new)  # here it is rounded, once
            _check_finite(name, some)
        row += len(rows)
        yield data
