"""Merge a LoRA adapter into its base: read both, write a model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from colab_utils import families, locks, replacement, runtime, workspace
from colab_utils.weights import nf4
from colab_utils.weights.adapter_fit import read_for_base
from colab_utils.weights.merge_blocks import Changes, merge_shard
from colab_utils.weights.merge_inputs import (
    INPUTS,
    describe_inputs,
    finished_shards,
    is_merged,
    other_files,
    warn_about_ids,
)
from colab_utils.weights.merge_layout import layout_of
from colab_utils.weights.shards import (
    all_entries,
    check_disk,
    find_shards,
)
from colab_utils.weights.stops import change_json, write_stop_tokens


def merge(
    base: Path | str, adapter: Path | str, out: Path | str, weights: str = "original"
) -> Path:
    """Write the model folder `out`: `base` with `adapter` merged, config, tokenizer.

    The adapter is added to the base's "original" `weights`, or to the "dequantized"
    ones: the base's weights after NF4, on which QLoRA trained. The merged weights of a
    base in bfloat16 are float16, unless the family's activations exceed float16.
    Safetensors are read and
    written some rows at a time, so memory does not grow with the model. The model is
    written to a hidden folder next to `out` and moved there at the end. A stopped run
    resumes after its last finished file; a model that is already merged stays.

    Raises ValueError when the adapter does not fit the base or a merged weight is not
    finite, FileExistsError when `out` holds the base or anything other than a model
    that `merge` wrote, RuntimeError when another process merges into the same folder
    or replaces the adapter, and OSError when the disk is too small.
    """
    if weights not in ("original", "dequantized"):
        raise ValueError(f"weights = {weights!r}; it can be: original, dequantized.")
    base, adapter, out = Path(base), Path(adapter), Path(out).resolve()
    shards = find_shards(base)
    with replacement.reading(adapter):
        updates, replaced = read_for_base(adapter, shards)
        others = other_files(base, adapter)
        dequantize = weights == "dequantized"
        quantized_in = nf4.trained_dtype(shards, adapter) if dequantize else None
        to_float16 = _to_float16(base, shards)
        changes = Changes(updates, replaced, quantized_in, to_float16)
        warn_about_ids(others.get("tokenizer.json"), shards, changes.vocab)
        inputs = describe_inputs(shards, adapter, others, quantized_in)
    with locks.writing(out):
        replacement.restore(out)
        read = (base, adapter)
        workspace.check_replaceable(out, "MODEL_NAME", (INPUTS,), inputs=read)
        sizes = {s.name: layout_of(s, replaced, to_float16).size for s in shards}
        if is_merged(out, inputs, sizes, others):
            print(f"merged already: {out}")
        else:
            _write_model(out, inputs, shards, others, changes, sizes)
    return out


def _to_float16(base: Path, shards: list[Path]) -> bool:
    """Return whether to write bfloat16 weights as float16; print the reason.

    bfloat16 has 8 binary digits. A trained update is often smaller than the distance
    of a weight to the next such number, and rounding would remove most of it. float16
    has 11 digits, and its range is enough for weights.
    """
    if all(entry["dtype"] != "BF16" for entry in all_entries(shards).values()):
        return False
    kind = json.loads((base / "config.json").read_text("utf-8")).get("model_type")
    if kind in families.OVERFLOWS:
        print(f"bfloat16 is kept: the activations of {kind} exceed float16")
        return False
    print("the merged weights are float16: bfloat16 would round small updates away")
    return True


def _write_model(
    out: Path,
    inputs: str,
    shards: list[Path],
    others: dict[str, Path],
    changes: Changes,
    sizes: dict[str, int],
) -> None:
    """Write the merged model next to `out`, then move it there."""
    part = out.with_name(f".{out.name}.part")
    finished = finished_shards(part, inputs, shards)
    older = " (the older one stays until it is complete)" if out.exists() else ""
    needed = sum(sizes.values()) - sum(sizes[shard.name] for shard in finished)
    check_disk(out.parent, needed, f"The merged model{older}")
    part.mkdir(exist_ok=True)
    (part / INPUTS).write_text(inputs, encoding="utf-8")
    try:
        _merge_shards(shards, finished, part, changes, sizes)
        for name, file in others.items():
            shutil.copyfile(file, part / name)
        if changes.vocab:
            change_json(part / "config.json", vocab_size=changes.vocab)
        if changes.to_float16:
            change_json(part / "config.json", dtype="float16")
        write_stop_tokens(part)
        replacement.replace(part, out)
    except KeyboardInterrupt:
        print(f"stopped: the next run resumes from {part}; or delete that folder")
        raise
    except Exception:  # for instance on a full disk: free its space again
        workspace.discard(part, ignore_errors=True)
        raise


def _merge_shards(
    shards: list[Path],
    finished: list[Path],
    part: Path,
    changes: Changes,
    sizes: dict[str, int],
) -> None:
    """Merge the shards that are not finished yet into the folder `part`."""
    import torch

    total, done = sum(sizes.values()), sum(sizes[shard.name] for shard in finished)
    options: dict[str, Any] = {"total": total, "initial": done}
    options |= {"unit": "B", "unit_scale": True}
    threads = torch.get_num_threads()
    # torch's idle threads keep their cores busy, and the writing thread needs a core.
    torch.set_num_threads(threads if changes.quantized_in else 1)
    try:
        with runtime.progress(None, "merging", **options) as bar:
            for shard in shards:
                if shard not in finished:
                    unfinished = part / "unfinished"
                    merge_shard(shard, unfinished, changes, bar)
                    unfinished.rename(part / shard.name)
    finally:
        torch.set_num_threads(threads)
