"""Plan a training run that fits the GPU, and check the machine before a download."""

from __future__ import annotations

import bisect
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from colab_utils import hub, runtime
from colab_utils.memory import costs
from colab_utils.memory.costs import Memory
from colab_utils.memory.step import Step
from colab_utils.runtime import GIB
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A T4 sustains about 24 TFLOP/s in float16 and 260 GB/s. Only the ratio decides a plan.
FLOPS, BANDWIDTH = 24e12, 260e9
# What needs less memory, for each method.
SMALLER = {
    "qlora": "a smaller RANK or MODEL",
    "lora": "METHOD = 'qlora', a smaller RANK or MODEL",
    "full": "METHOD = 'qlora' or a smaller MODEL",
}
SMALLEST = 256  # tokens of a micro-batch: with fewer, dequantizing takes most time


@dataclass(frozen=True)
class Plan:
    """How to train: the micro-batch, gradient accumulation, and how to save memory.

    A micro-batch is one packed row of `tokens` tokens, and an update sees
    `accumulation` of them. `recompute` is the number of layers with gradient
    checkpointing; `offload` keeps their inputs in RAM.
    """

    tokens: int
    accumulation: int
    recompute: int
    offload: bool
    fast: bool
    cost: Memory

    def __str__(self) -> str:
        """Return the plan in one line."""
        times = f"{self.accumulation} x " if self.accumulation > 1 else ""
        layers = f"{self.recompute or 'no'} layer{'s' * (self.recompute != 1)}"
        offload = ", inputs and embeddings in RAM" if self.offload else ""
        return (
            f"{times}{self.tokens:,} tokens an update; gradient checkpointing for "
            f"{layers}{offload}; {self.cost.total / GIB:.2f} GiB at the peak"
        )


def seconds(
    config: PreTrainedConfig | Shape, method: str, tokens: int, recompute: int
) -> float:
    """Return roughly the seconds that a T4 needs for a micro-batch of `tokens` tokens.

    Per weight and token the forward pass has 2 operations, the backward pass 2 (4 if
    all weights are trained), and a checkpointed layer 2 more. QLoRA dequantizes every
    weight once per pass.
    """
    shape = Shape.from_config(config)
    linear, _ = costs.parameters(shape)
    head = shape.vocab * shape.width
    again = recompute / shape.layers
    passes = 3 if method == "full" else 2
    work = 2.0 * tokens * (passes * (linear + head) + again * linear)
    dequantized = 2.5 * linear * (2 + again) if method == "qlora" else 0.0
    return work / FLOPS + dequantized / BANDWIDTH


def plan(
    config: PreTrainedConfig | Shape,
    method: str,
    rank: int,
    *,
    longest: int,
    update: int,
    budget: float,
    fast: bool = True,
    gpu: bool = True,
    optimizer: str = "adamw_8bit",
) -> Plan:
    """Return the fastest way to train that fits a budget of `budget` bytes.

    `longest` is the longest row in tokens, `update` the number of tokens that one
    update should train on. This tries micro-batches from `longest` to `update` tokens,
    each with as few checkpointed layers as fit. On the fast path of a GPU the inputs of
    all layers may also be in RAM. The plan is for the reference path if the fast path
    does not know the model's family, or if a row is longer than its sliding window.

    Raises MemoryError, with the numbers and what to change, when nothing fits.
    """
    shape = Shape.from_config(config)
    if shape.window and longest > shape.window:
        print(
            f"reference path: the longest row has {longest:,} tokens, more than the "
            f"model's sliding window of {shape.window:,}"
        )
        fast = False
    step = Step(
        shape,
        method,
        rank,
        min(longest, update),
        fast=fast and shape.known,
        gpu=gpu,
        optimizer=optimizer,
    )
    found = list(candidates(step, longest, update, budget))
    fitting = [one for one in found if one.cost.total <= budget]
    if not fitting:
        at_rank = "" if method == "full" else f" at rank {rank}"
        raise MemoryError(
            f"{method}{at_rank} needs at least {found[-1].cost.total / GIB:.1f} "
            f"GiB for rows of {longest:,} tokens, and the budget is "
            f"{budget / GIB:.1f} GiB. Use {SMALLER[method]}, or set MAX_TOKENS lower "
            "in 01_create_dataset."
        )

    def slowness(one: Plan) -> tuple[bool, float]:
        return one.offload, (
            seconds(step.shape, method, one.tokens, one.recompute) / one.tokens
        )

    return min(fitting, key=slowness)


def candidates(step: Step, longest: int, update: int, budget: float) -> Iterator[Plan]:
    """Yield the best plan for each number of micro-batches in an update.

    If none fits `budget` bytes, the best plan is the one with the least memory.
    """
    for times in range(1, max(1, update // max(longest, SMALLEST)) + 1):
        tokens = max(longest, -(-update // times))
        one = save_memory(replace(step, tokens=tokens, accumulating=times > 1), budget)
        cost = one.peak()
        yield Plan(tokens, times, one.recompute, one.offload, one.fast, cost)
        if cost.total <= budget and not one.recompute:
            return  # with smaller micro-batches the weights are dequantized more often


def save_memory(step: Step, budget: float) -> Step:
    """Return the step with as few checkpointed layers as fit `budget` bytes.

    If checkpointing all layers is not enough, and the step runs on the fast path of a
    GPU, their inputs are in RAM.
    """
    layers = step.shape.layers

    def fits(recompute: int) -> bool:
        return replace(step, recompute=recompute).peak().total <= budget

    # Each checkpointed layer saves memory, except the last one.
    fewest = bisect.bisect_left(range(layers), True, key=fits)
    if fewest < layers or fits(layers):
        return replace(step, recompute=fewest)
    return replace(step, recompute=layers, offload=step.gpu and step.fast)


class Need(NamedTuple):
    """Memory or disk space that a run needs, in bytes."""

    name: str
    needed: float
    free: float
    total: float
    advice: str  # what to change if even `total` is too small

    def __str__(self) -> str:
        """Return in one line what is needed and what is free."""
        return (
            f"{self.name}: needs {self.needed / GIB:.1f} GiB of "
            f"{self.free / GIB:.1f} free"
        )

    def problem(self) -> str | None:
        """Return what is missing and what to change, or None if enough is free."""
        if self.needed <= self.free:
            return None
        advice = self.advice
        if self.needed <= self.total:
            advice = "something else holds memory: restart the session"
        return (
            f"{self.name} has {self.free / GIB:.1f} GiB free and "
            f"{self.needed / GIB:.1f} are needed: {advice}"
        )


def preflight(config: PreTrainedConfig, model: str, cost: Memory) -> None:
    """Check GPU, RAM, disk and access before a download; print the numbers.

    `model` is a folder or a Hub id, `cost` a result of `estimate` or of `plan`. Raises
    MemoryError if memory or disk space is too small; the message lists what is needed,
    what is free and what to change. Raises PermissionError for a model that can't be
    downloaded, and FileNotFoundError for a name that does not exist.
    """
    shape = Shape.from_config(config)
    needs, denied = _memory_needs(shape, cost), None
    if not Path(model).is_dir():
        with hub.hub_errors(model, None):
            downloaded = _downloaded(model)
        if not downloaded:
            needs.append(_disk_need(shape))
            if not hub.can_read(model, hub.token()):
                denied = f"{model} can't be downloaded (the reason is printed above)"
    for need in needs:
        print(need)
    problems = [problem for need in needs if (problem := need.problem())]
    if problems:
        found = "; ".join([*problems, denied] if denied else problems)
        raise MemoryError(f"This would not fit. {found}.")
    if denied:
        raise PermissionError(f"{denied}.")


def _memory_needs(shape: Shape, cost: Memory) -> list[Need]:
    """Return the memory that the GPU, if there is one, and RAM must have free."""
    import psutil
    import torch

    machine, ram = runtime.detect(), psutil.virtual_memory()
    needed, loading = [], costs.ram_to_load(shape)
    if machine.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        advice = "choose a smaller MODEL, RANK or MAX_TOKENS"
        needed.append(Need(machine.accelerator, cost.total, free, total, advice))
        advice = "choose a smaller MODEL"
    else:
        loading += cost.total
        advice = "choose a machine with a GPU, or a smaller MODEL"
    return [*needed, Need("RAM", loading, ram.available, ram.total, advice)]


def _disk_need(shape: Shape) -> Need:
    """Return the space that the disk must have free for a model's files."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    folder = next(one for one in (cache, *cache.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    files = costs.weights(shape, "qlora" if shape.quantized else "lora", 2).total
    # `total` is `free`, because a restart frees no disk space.
    return Need("disk", files, free, free, f"delete files, for example in {folder}")


def _downloaded(model: str) -> bool:
    """Return whether the Hub's cache holds all weights already."""
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
