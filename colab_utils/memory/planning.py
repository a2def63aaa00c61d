"""Plan a training run that fits the GPU and the RAM."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from colab_utils.memory import costs
from colab_utils.memory.costs import Memory
from colab_utils.memory.step import Step
from colab_utils.runtime import GIB
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A T4 sustains about 24 TFLOP/s in float16 and 260 GB/s. Only the ratio decides a plan.
FLOPS, BANDWIDTH = 24e12, 260e9
# How much longer an operation of attention takes than one of a matrix product: 4.8 to
# 5.4 on an H100 with documents of 4,096 to 16,384 tokens (bench/LOG.md); no T4 was
# measured.
SLOWER = 5.0
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
    checkpointing; the inputs of the first `offload` of them are in RAM, except those of
    the first `disk`, which are on disk. With several `tiles`, layers compute their
    heads in so many parts. The weights of the layers are sharded over `shards` GPUs.
    """

    tokens: int
    accumulation: int
    recompute: int
    offload: int
    fast: bool
    cost: Memory
    shards: int = 1
    tiles: int = 1
    disk: int = 0

    @classmethod
    def of(cls, step: Step, accumulation: int) -> Plan:
        """Return the plan that trains in such steps."""
        saving = step.recompute, step.offload, step.fast, step.peak()
        rest = step.shards, step.tiles, step.disk
        return cls(step.tokens, accumulation, *saving, *rest)

    def __str__(self) -> str:
        """Return the plan in one line."""
        times = f"{self.accumulation} x " if self.accumulation > 1 else ""
        layers = f"{self.recompute or 'no'} layer{'s' * (self.recompute != 1)}"
        offload = f" in {self.tiles} tiles" if self.tiles > 1 else ""
        if self.offload:
            offload += (
                f", {self.cost.ram / GIB:.1f} GiB of inputs and embeddings in RAM"
            )
        if self.disk:
            offload += f", {self.cost.disk / GIB:.1f} GiB of inputs on disk"
        if self.shards > 1:
            offload += f"; 1/{self.shards} of each layer's weights on a GPU"
        return (
            f"{times}{self.tokens:,} tokens an update; gradient checkpointing for "
            f"{layers}{offload}; {self.cost.total / GIB:.2f} GiB at the peak"
        )


def seconds(
    config: PreTrainedConfig | Shape,
    method: str,
    tokens: int,
    recompute: int,
    document: float,
) -> float:
    """Return roughly the seconds that a T4 needs for a micro-batch of `tokens` tokens.

    Per weight and token the forward pass has 2 operations, the backward pass 2 (4 if
    all weights are trained), and a checkpointed layer 2 more. QLoRA dequantizes every
    weight once per pass. A token attends to half of its document on average; `document`
    is its number of tokens. For documents of several lengths it is the mean of their
    squares divided by their mean. The backward pass of attention has 2.5 times the
    operations of the forward pass (Dao et al. 2022).
    """
    shape = Shape.from_config(config)
    linear, _ = costs.parameters(shape)
    head = shape.vocab * shape.width
    again = recompute / shape.layers
    passes = 3 if method == "full" else 2
    work = 2.0 * tokens * (passes * (linear + head) + again * linear)
    attention = 2.0 * tokens * document * shape.queries * shape.layers * (3.5 + again)
    dequantized = 2.5 * linear * (2 + again) if method == "qlora" else 0.0
    return (work + SLOWER * attention) / FLOPS + dequantized / BANDWIDTH


def gather_seconds(
    config: PreTrainedConfig | Shape, shards: int, bandwidth: float = costs.PCIE
) -> float:
    """Return the seconds for which the gathers of a micro-batch occupy the connection.

    They run while the GPU computes, and cost time only if they take longer than that.
    `bandwidth` is what a GPU receives, in bytes a second.
    """
    return costs.gathered_bytes(config, shards) / bandwidth


def plan(
    config: PreTrainedConfig | Shape,
    method: str,
    rank: int,
    *,
    longest: int,
    update: int,
    budget: float,
    ram: float = costs.COLAB_RAM,
    disk: float = costs.COLAB_DISK,
    fast: bool = True,
    gpu: bool = True,
    optimizer: str = "adamw_8bit",
    embeddings: bool = False,
    shards: int = 1,
    bandwidth: float = costs.PCIE,
) -> Plan:
    """Return the fastest way to train that fits a budget of `budget` bytes.

    `longest` is the longest row in tokens, `update` the number of tokens that one
    update should train on. This tries micro-batches from `longest` to `update` tokens,
    each with as few checkpointed layers as fit. On the fast path of a GPU, layers may
    also be in tiles, and their inputs in RAM, if the machine has `ram` bytes of it, or
    on disk, if it has `disk` bytes free. The plan is for the reference path if the fast
    path does not know the model's family, if a row is longer than its sliding window,
    or if an adapter also trains `embeddings` and head. The weights are sharded over
    `shards` GPUs, which receive `bandwidth` bytes a second.

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
        embeddings=embeddings,
        shards=shards,
    )
    free = ram - costs.SYSTEM_RAM - costs.ram_to_load(shape)
    found = list(candidates(step, longest, update, budget, free))
    fitting = [one for one in found if one.cost.total <= budget]
    at_rank = "" if method == "full" else f" at rank {rank}"
    if not fitting:
        raise MemoryError(
            f"{method}{at_rank} needs at least {found[-1].cost.total / GIB:.1f} "
            f"GiB for rows of {longest:,} tokens, and the budget is "
            f"{budget / GIB:.1f} GiB. Use {SMALLER[method]}, or set MAX_TOKENS lower "
            "in 01_create_dataset."
        )
    plans = [p for p in fitting if p.cost.ram <= free and p.cost.disk <= disk]
    if not plans:
        least = min((one.cost for one in fitting), key=lambda cost: cost.disk)
        raise MemoryError(
            f"{method}{at_rank} for rows of {longest:,} tokens must keep "
            f"{least.ram / GIB:.1f} GiB in RAM and {least.disk / GIB:.1f} GiB on disk. "
            f"Of {ram / 1e9:.1f} GB of RAM {max(free, 0) / GIB:.1f} GiB are free for "
            f"it, and of the disk {disk / GIB:.1f} GiB. Use {SMALLER[method]}, or set "
            "MAX_TOKENS lower in 01_create_dataset."
        )

    def slowness(one: Plan) -> tuple[float, int, bool, float]:
        spent = seconds(step.shape, method, one.tokens, one.recompute, longest)
        spent = max(spent, gather_seconds(step.shape, shards, bandwidth))
        return one.cost.disk, one.tiles, one.offload > 0, spent / one.tokens

    return min(plans, key=slowness)


def candidates(
    step: Step, longest: int, update: int, budget: float, ram: float = math.inf
) -> Iterator[Plan]:
    """Yield the best plans for each number of micro-batches in an update.

    Inputs for which `ram` bytes are too little are on disk. If no plan fits `budget`
    bytes, the last one has the least memory.
    """
    most = max(1, update // max(longest, SMALLEST))
    # Trained embeddings and head: the reference path's loss in float32 needs more than
    # is counted, so the batches are the smallest.
    for times in [most] if step.embeddings else range(1, most + 1):
        tokens = max(longest, -(-update // times))
        whole = replace(step, tokens=tokens, accumulating=times > 1)
        for tiles in (1, *tile_counts(step.shape)):
            saving = save_memory(replace(whole, tiles=tiles), budget)
            one = Plan.of(with_disk(saving, ram), times)
            yield one
            if not one.offload:
                break
        if one.cost.total <= budget and not one.recompute:
            return  # with smaller micro-batches the weights are dequantized more often


def tile_counts(shape: Shape) -> list[int]:
    """Return the numbers of equal parts that a layer's key heads can have, up to 8."""
    return [n for n in range(2, 9) if shape.kv_heads % n == 0]


def with_disk(step: Step, ram: float) -> Step:
    """Return the step with as few inputs on disk as leave `ram` bytes enough."""

    def fits(count: int) -> bool:
        return replace(step, disk=count).ram <= ram

    counts = range(step.offload)
    return replace(step, disk=bisect.bisect_left(counts, True, key=fits))


def save_memory(step: Step, budget: float) -> Step:
    """Return the step with as few checkpointed layers as fit `budget` bytes.

    If checkpointing all layers is not enough, and the step runs on the fast path of a
    GPU, as few of their inputs as possible are in RAM.
    """
    layers = step.shape.layers

    def fits(recompute: int, offload: int = 0) -> bool:
        one = replace(step, recompute=recompute, offload=offload)
        return one.peak().total <= budget

    # Each checkpointed layer saves memory, except the last one.
    fewest = bisect.bisect_left(range(layers), True, key=fits)
    if fewest < layers or fits(layers):
        return replace(step, recompute=fewest)
    if not (step.gpu and step.fast):
        return replace(step, recompute=layers)
    counts = range(layers)
    fewest = bisect.bisect_left(counts, True, key=lambda count: fits(layers, count))
    return replace(step, recompute=layers, offload=fewest)
