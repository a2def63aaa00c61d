"""Merge a LoRA adapter into its base, one tensor at a time: W + (alpha / r) B A."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    import torch

SUPPORTED = {"LORA"}
# Options of LoRA that change the formula; merging them is not written yet.
UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "bias")
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def read_adapter(folder: Path) -> tuple[dict[str, tuple], float]:
    """The (A, B) of each adapted weight, by the weight's name, and the scale alpha / r.

    Raises FileNotFoundError for a folder without an adapter and ValueError for a kind of
    adapter that can't be merged here.
    """
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter. 02_finetune_qlora makes one with METHOD = "
            '"qlora" or "lora"; after "full" there is nothing to merge.'
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    used = [
        name for name in UNSUPPORTED if config.get(name) not in (None, False, {}, [])
    ]
    used = [name for name in used if config[name] != "none"]
    if config["peft_type"] not in SUPPORTED or used:
        kind = ", ".join([config["peft_type"], *used])
        raise ValueError(f"Can't merge this adapter: {kind}. Plain LoRA can be merged.")
    rank = config["r"]
    scale = config["lora_alpha"] / (
        math.sqrt(rank) if config.get("use_rslora") else rank
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            weight = stem.removeprefix("base_model.model.") + ".weight"
            pairs[weight] = (a.float(), tensors[f"{stem}.lora_B.weight"].float())
    return pairs, scale


def merged_weight(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    """W + scale B A, computed in 32 bits and rounded once to the dtype of W.

    Shapes: W (out, in), A (r, in), B (out, r). Source: Hu et al. 2021, section 4.
    """
    return weight.float().addmm_(b, a, alpha=scale).to(weight.dtype)


def merge(base: Path, adapter: Path, out: Path) -> Path:
    """Write a model folder: `base` with `adapter` merged in, config and tokenizer.

    Reads and writes safetensors a tensor at a time: memory holds one weight, whatever
    the model's size. Written beside `out` and renamed at the end, so that a run that is
    cut leaves nothing half made. Raises ValueError when the adapter doesn't fit the base
    and OSError when the disk is too small.
    """
    pairs, scale = read_adapter(adapter)
    shards = find_shards(base)
    size = sum(shard.stat().st_size for shard in shards)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size * 1.02:
        raise OSError(
            f"The merged model needs {size / 2**30:.1f} GiB, {out.parent} has "
            f"{free / 2**30:.1f} GiB free. Free some, or set WORKSPACE to a larger disk."
        )
    _check_fit(shards, pairs)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with runtime.progress(
        None, "merging", total=size, unit="B", unit_scale=True
    ) as bar:
        for shard in shards:
            _merge_shard(shard, part / shard.name, pairs, scale, bar)
    for file in base.glob("*.json"):
        shutil.copyfile(file, part / file.name)
    for file in adapter.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(file, part / file.name)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return out


def find_shards(base: Path) -> list[Path]:
    """The safetensors files of a model folder; raises FileNotFoundError without any."""
    shards = sorted(base.glob("*.safetensors"))
    if not shards:
        has_bin = any(base.glob("*.bin"))
        hint = (
            "Only .bin files: load it and call save_pretrained once. "
            if has_bin
            else ""
        )
        raise FileNotFoundError(f"{base} holds no safetensors weights. {hint}".strip())
    return shards


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins, in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def tensors_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and {"dtype", "shape", "data_offsets"} of each tensor, in the file's order."""
    header, _ = _header(path)
    entries = ((n, e) for n, e in header.items() if n != "__metadata__")
    return iter(sorted(entries, key=lambda item: item[1]["data_offsets"][0]))


def _check_fit(shards: list[Path], pairs: dict[str, tuple]) -> None:
    shapes = {n: tuple(e["shape"]) for shard in shards for n, e in tensors_of(shard)}
    missing = sorted(set(pairs) - set(shapes))
    if missing:
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}): is it the base that the adapter was trained on?"
        )
    for name, (a, b) in pairs.items():
        wanted = (b.shape[0], a.shape[1])
        if shapes[name] != wanted:
            raise ValueError(
                f"{name} is {shapes[name]} in the base, the adapter wants {wanted}: is it "
                "the base that the adapter was trained on?"
            )


def _merge_shard(source: Path, target: Path, pairs: dict, scale: float, bar) -> None:
    """Copy a safetensors file, replacing the weights that have an adapter."""
    import torch

    _, begin = _header(source)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(old.read(begin))
        for name, entry in tensors_of(source):
            first, last = entry["data_offsets"]
            if last == first:
                continue
            old.seek(begin + first)
            data = bytearray(old.read(last - first))
            if name in pairs:
                dtype = getattr(torch, DTYPES[entry["dtype"]])
                weight = torch.frombuffer(data, dtype=dtype).view(entry["shape"])
                weight.copy_(merged_weight(weight, *pairs[name], scale))
            new.seek(begin + first)
            new.write(data)
            bar.update(last - first)
