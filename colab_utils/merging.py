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
    from tqdm import tqdm

# Options of LoRA that change the formula; merging them is not written yet.
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
)
# Starts of A and B that leave the base's weights as they are; others change them.
INITS = (True, False, None, "gaussian", "orthogonal", "eva")
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def read_adapter(folder: Path) -> tuple[dict[str, tuple], float]:
    """The (A, B) of each adapted weight, by the weight's name, and the scale alpha / r.

    Raises FileNotFoundError for a folder without an adapter and ValueError for a kind
    of adapter that can't be merged here.
    """
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter. 02_finetune_qlora makes one with METHOD = "
            '"qlora" or "lora"; after "full" there is nothing to merge.'
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    odd = [name for name in UNSUPPORTED if config.get(name)]
    if config["peft_type"] != "LORA":
        odd.insert(0, config["peft_type"])
    if config.get("bias", "none") != "none":  # PEFT trains it, and may not save it
        odd.append("bias")
    if config.get("init_lora_weights") not in INITS:
        odd.append(f"init_lora_weights={config['init_lora_weights']}")
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs = {}
    for name in list(tensors):
        stem = name.removesuffix(".lora_A.weight")
        if stem != name and f"{stem}.lora_B.weight" in tensors:
            weight = stem.removeprefix("base_model.model.") + ".weight"
            a, b = tensors.pop(name), tensors.pop(f"{stem}.lora_B.weight")
            pairs[weight] = (a.float(), b.float())
    odd += list(tensors)[:1]  # a whole layer, an adapted embedding, ...
    if odd or not pairs:
        kind = ", ".join(odd) or "it is empty"
        raise ValueError(f"Can't merge this adapter: {kind}. Plain LoRA can be merged.")
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return pairs, config["lora_alpha"] / root


def merged_weight(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    """W + scale B A, computed in 32 bits and rounded once to the dtype of W.

    Shapes: W (out, in), A (r, in), B (out, r). Source: Hu et al. 2021, section 4.
    """
    return (b.float() @ a.float()).mul_(scale).add_(weight).to(weight.dtype)


def merge(base: Path, adapter: Path, out: Path) -> Path:
    """Write a model folder: `base` with `adapter` merged in, config and tokenizer.

    Reads and writes safetensors a tensor at a time: memory holds one weight, whatever
    the model's size. Written beside `out` and renamed at the end, so that a run that is
    cut leaves nothing half made. Raises ValueError when the adapter doesn't fit the
    base, FileExistsError when `out` is no model's folder, and OSError when the disk is
    too small.
    """
    pairs, scale = read_adapter(adapter)
    shards = find_shards(base)
    _check_fit(shards, pairs)
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise FileExistsError(
            f"{out} holds something else than a model, and would be replaced. Choose "
            "another MODEL_NAME, or move that folder away."
        )
    part = out.with_name(f".{out.name}.part")
    if part.exists():  # of a run that was cut
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        _check_disk(part, sum(shard.stat().st_size for shard in shards))
        _write(base, shards, adapter, part, pairs, scale)
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out


def _check_disk(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size * 1.02:
        raise OSError(
            f"The merged model needs {size / 2**30:.1f} GiB, {folder.parent} has "
            f"{free / 2**30:.1f} GiB free. Free some, or set WORKSPACE to a larger "
            "disk."
        )


def _write(
    base: Path,
    shards: list[Path],
    adapter: Path,
    part: Path,
    pairs: dict[str, tuple],
    scale: float,
) -> None:
    """The merged weights, the base's config and the adapter's tokenizer."""
    size = sum(shard.stat().st_size for shard in shards)
    with runtime.progress(
        None, "merging", total=size, unit="B", unit_scale=True
    ) as bar:
        for shard in shards:
            _merge_shard(shard, part / shard.name, pairs, scale, bar)
    for file in (*base.glob("*.json"), *base.glob("tokenizer.model")):
        # Not how the base was made, nor the index of weights in another format.
        if file.name not in ("recipe.json", "pytorch_model.bin.index.json"):
            shutil.copyfile(file, part / file.name)
    for file in adapter.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(file, part / file.name)


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
            f"{base} holds no safetensors weights. A model that has other files only "
            "must be loaded and saved once with save_pretrained."
        )
    return shards


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins, in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def tensors_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and {"dtype", "shape", "data_offsets"} of each tensor, in file order."""
    header, _ = _header(path)
    entries = ((n, e) for n, e in header.items() if n != "__metadata__")
    return iter(sorted(entries, key=lambda item: item[1]["data_offsets"][0]))


def _check_fit(shards: list[Path], pairs: dict[str, tuple]) -> None:
    found = {name: entry for shard in shards for name, entry in tensors_of(shard)}
    missing = sorted(set(pairs) - set(found))
    if missing:
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}): is it the base that the adapter was trained on?"
        )
    for name, (a, b) in pairs.items():
        dtype, shape = found[name]["dtype"], tuple(found[name]["shape"])
        if dtype not in DTYPES:
            raise ValueError(
                f"{name} is stored as {dtype} in the base: merge into the base's "
                "16-bit weights, not into quantised ones."
            )
        wanted = (b.shape[0], a.shape[1])
        if shape != wanted:
            raise ValueError(
                f"{name} is {shape} in the base, the adapter wants {wanted}: is it the "
                "base that the adapter was trained on?"
            )


def _merge_shard(
    source: Path, target: Path, pairs: dict[str, tuple], scale: float, bar: tqdm
) -> None:
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
            data = bytearray(last - first)
            if old.readinto(data) != len(data):
                raise ValueError(f"{source} is cut short: download the model again.")
            if name in pairs:
                dtype = getattr(torch, DTYPES[entry["dtype"]])
                weight = torch.frombuffer(data, dtype=dtype).view(entry["shape"])
                weight.copy_(merged_weight(weight, *pairs[name], scale))
            new.seek(begin + first)
            new.write(data)
            bar.update(last - first)
