"""Plan a run so that it fits the card by computation: what, how much at once, how."""

from __future__ import annotations

import bisect
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import hub, runtime
from colab_utils.memory import costs
from colab_utils.memory.costs import (
    GIB,
    METHODS,
    Memory,
    adapter_parameters,
    at_loss,
    estimate,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig

__all__ = [
    "GIB",
    "METHODS",
    "Memory",
    "Plan",
    "adapter_parameters",
    "at_loss",
    "estimate",
    "inference",
    "plan",
    "preflight",
    "ram_to_load",
    "ram_to_merge",
]

# A T4 sustains about 24 TFLOP/s in float16 and 260 GB/s. Only the ratio decides a plan.
FLOPS, BANDWIDTH = 24e12, 260e9
SMALLEST = 256  # tokens of a micro-batch: below, unpacking the weights takes over


@dataclass(frozen=True)
class Plan:
    """How to train: tokens at a time, how often before an update, how to save memory.

    `tokens` are those of one micro-batch, a packed row; `recompute` counts the layers
    whose activations are computed again, `offload` keeps even their inputs in RAM.
    """

    tokens: int
    accumulation: int
    recompute: int
    offload: bool
    fast: bool
    cost: Memory

    def __str__(self) -> str:
        kept = ", their inputs and the embeddings in RAM" if self.offload else ""
        times = f"{self.accumulation} x " if self.accumulation > 1 else ""
        layers = (
            "1 layer" if self.recompute == 1 else f"{self.recompute or 'no'} layers"
        )
        return (
            f"{times}{self.tokens:,} tokens an update; {layers} recomputed{kept}; "
            f"{self.cost.total / GIB:.2f} GiB at the peak"
        )


def seconds(config: LlamaConfig, method: str, tokens: int, recompute: int) -> float:
    """About how long a T4 computes on one micro-batch of so many tokens.

    Two operations a weight and token forward, twice that backward (three times where
    all weights are trained), once more for what is recomputed; and each pass over 4-bit
    weights unpacks all of them.
    """
    linear, _ = costs.parameters(config)
    head = config.vocab_size * config.hidden_size
    again = recompute / config.num_hidden_layers
    passes = 3 if method == "full" else 2
    work = 2.0 * tokens * (passes * (linear + head) + again * linear)
    unpacked = 2.5 * linear * (2 + again) if method == "qlora" else 0.0
    return work / FLOPS + unpacked / BANDWIDTH


def plan(
    config: LlamaConfig,
    method: str,
    rank: int,
    *,
    longest: int,
    update: int,
    room: float,
    fast: bool = True,
    gpu: bool = True,
    optimizer: str = "adamw_8bit",
) -> Plan:
    """The fastest way to train that fits `room` bytes.

    `longest` is the longest row in tokens, `update` how many tokens one update should
    see. Tried are micro-batches from `longest` to `update`, each with as few recomputed
    layers as fit, and, on the fast path of a GPU, inputs kept in RAM where recomputing
    all is not enough. Raises MemoryError, with the numbers and what to change, when
    nothing fits.
    """
    tokens = min(longest, update)
    costs.check(config, method=method, optimizer=optimizer, rank=rank, tokens=tokens)
    fast, layers = fast and method != "full", config.num_hidden_layers

    def way(times: int, recompute: int, offload: bool = False) -> Plan:
        tokens = max(longest, -(-update // times))
        cost = estimate(
            config,
            method,
            rank,
            tokens,
            recompute=recompute,
            offload=offload,
            fast=fast,
            accumulating=times > 1,
            gpu=gpu,
            optimizer=optimizer,
        )
        return Plan(tokens, times, recompute, offload, fast, cost)

    def fits(one: Plan) -> bool:
        return one.cost.total <= room

    def slowness(one: Plan) -> tuple[bool, float]:
        spent = seconds(config, method, one.tokens, one.recompute)
        return one.offload, spent / one.tokens

    fitting = []
    for times in range(1, max(1, update // max(longest, SMALLEST)) + 1):
        # The more are recomputed the less it takes, but for the last one.
        fewest = bisect.bisect_left(
            range(layers), True, key=lambda k: fits(way(times, k))
        )
        found = way(times, fewest)
        if not fits(found):
            found = way(times, layers, gpu and fast)
        fitting += [found] if fits(found) else []
        if fits(found) and not found.recompute:
            break  # smaller ones would only unpack the weights more often
    if not fitting:
        smaller = "" if method == "qlora" else "METHOD = 'qlora', "
        raise MemoryError(
            f"{method} at rank {rank} needs {found.cost.total / GIB:.1f} GiB for rows "
            f"of {longest:,} tokens, at its leanest, and there are {room / GIB:.1f}. "
            f"Use {smaller}a smaller RANK or MODEL, or set MAX_TOKENS lower in "
            "01_create_dataset."
        )
    return min(fitting, key=slowness)


def preflight(config: LlamaConfig, model: str, cost: Memory) -> None:
    """Check card, RAM, disk and access before a download; print the numbers.

    `model` is a folder or a Hub id, `cost` what `estimate` or `plan` found. Raises
    MemoryError with all that is short: what is needed, what is there, what to change;
    PermissionError for a model that can't be downloaded, FileNotFoundError for a name
    that is none.
    """
    import psutil
    import torch

    machine, ram = runtime.detect(), psutil.virtual_memory()
    gpu = machine.device == "cuda"
    # what for, bytes, free, in all, what to change where even all is too little
    needs = [
        (
            "RAM",
            ram_to_load(config) + (0 if gpu else cost.total),
            ram.available,
            ram.total,
            "choose a "
            + ("" if gpu else "machine with a GPU, or a ")
            + "smaller MODEL",
        )
    ]
    if gpu:
        sizes, change = torch.cuda.mem_get_info(), "smaller MODEL, RANK or MAX_TOKENS"
        card = machine.accelerator, cost.total, *sizes, f"choose a {change}"
        needs.insert(0, card)
    refused = None
    if not Path(model).is_dir():
        with hub.hub_errors(model, None):
            downloaded = _downloaded(model)
        if not downloaded:
            needs.append(("disk", _download(config), *_disk()))
            if not hub.can_read(model, hub.token()):
                refused = f"{model} can't be downloaded (a line above says why)"
    problems = []
    for name, need, free, total, change in needs:
        print(f"{name}: needs {need / GIB:.1f} GiB of {free / GIB:.1f} free")
        if need > free:
            if need <= total:
                change = "something else holds memory: restart the session"
            problems.append(
                f"{name} has {free / GIB:.1f} GiB free and {need / GIB:.1f} are "
                f"needed: {change}"
            )
    if problems:
        told = "; ".join([*problems, refused] if refused else problems)
        raise MemoryError(f"This would not fit. {told}.")
    if refused:
        raise PermissionError(f"{refused}.")


def _download(config: LlamaConfig) -> float:
    """Bytes of a model's files: 16 bits a weight, unless they are quantised."""
    quantised = getattr(config, "quantization_config", None)
    return costs.weights(config, "qlora" if quantised else "lora", 2, False).total


def _disk() -> tuple[int, int, str]:
    """Bytes free where the Hub's files go, as all there can be, and what to do."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    return free, free, f"delete files, of which some in {there}"


def _downloaded(model: str) -> bool:
    """Whether the Hub's cache holds the weights already, all of them."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> str | None:
        found = try_to_load_from_cache(model, name)
        return found if isinstance(found, str) else None

    if find("model.safetensors"):
        return True
    index = find("model.safetensors.index.json")
    if index is None:
        return False
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return all(map(find, set(shards)))


def inference(config: LlamaConfig, method: str, rank: int, tokens: int) -> Memory:
    """Bytes at the peak of answering on a GPU, with `tokens` in the cache of all rows.

    `activations` is the cache of keys and values. Weights are held as `method` trained
    them, in 4 or in 16 bits; the adapter is there twice, as PEFT has it and as a step
    of decoding needs it. The peak is that of reading a prompt as long as the cache.
    """
    costs.check(config, method=method, rank=rank, tokens=tokens)
    full = method == "full"
    width, inner = config.hidden_size, config.intermediate_size
    (_, keys) = costs.linear_shapes(config)[1]
    prompt = 2.0 * (2 * width * tokens + 3 * inner * min(tokens, costs.MLP_ROWS))
    return replace(
        costs.weights(config, "lora" if full else method, 2, False),
        adapters=0.0 if full else 2 * 2.0 * adapter_parameters(config, rank),
        activations=2.0 * 2 * keys * config.num_hidden_layers * tokens,
        logits=6.0 * config.vocab_size,
        working=costs.CUBLAS + prompt + 2.0 * width * inner * (method == "qlora"),
        reserve=costs.RESERVE,
    )


def ram_to_load(config: LlamaConfig) -> float:
    """Bytes of RAM that loading takes: Python with its libraries, and a few tensors."""
    return 2.5 * GIB + 4 * 2.0 * config.vocab_size * config.hidden_size


def ram_to_merge(config: LlamaConfig, rank: int = 16) -> float:
    """Bytes of RAM that `merging.merge` takes: Python with torch, the adapter, blocks.

    The model's size is not among them: its weights pass by in row blocks.
    """
    return 0.5 * GIB + 4.0 * adapter_parameters(config, rank)
