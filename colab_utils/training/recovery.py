"""Go on when the memory runs out in a training step: once, with less memory.

A backward pass that fails may have added to some gradients. So the gradients of the
update are deleted, and the update begins again at its first micro-batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psutil
import torch

from colab_utils import memory
from colab_utils.fast import lora, patch
from colab_utils.memory.planning import SMALLER, tile_counts
from colab_utils.runtime import GIB
from colab_utils.shape import Shape
from colab_utils.training.gradient_checkpointing import checkpoint_first, checkpointable

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.trainer.sft_trainer import SFTTrainer

Result = TypeVar("Result")

# torch raises RuntimeError for the CPU's allocator, for page-locked RAM and for cuBLAS.
RAN_OUT = re.compile(
    "out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED"
)
REQUEST = re.compile(r"[Tt]ried to allocate (\d+) bytes|Tried to allocate ([\d.]+ \w+)")


def ran_out(error: Exception) -> bool:
    """Return whether an error says that the GPU or the RAM has too little memory."""
    return isinstance(error, MemoryError) or bool(RAN_OUT.search(str(error)))


@dataclass
class Start:
    """What a trainer held at the beginning of an update, in addition to its weights."""

    batches: list[dict[str, Any]]
    tokens: int
    metrics: dict[str, list[float]]
    random: torch.Tensor
    random_gpu: torch.Tensor | None


class Recovery:
    """Repeats the work of a trainer that ran out of memory, once.

    `plan` is that of `training.use_fast_path`.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        self.plan: memory.Plan | None = None
        self.start: Start | None = None
        self.used = False
        self.shortage = ""  # the numbers of an error that ends the training

    @property
    def model(self) -> PreTrainedModel:
        """The trainer's model."""
        return cast("PreTrainedModel", self.trainer.model)

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the update."""
        return self.start.batches if self.start else []

    def begin(self, batches: list[dict[str, Any]]) -> None:
        """Note the state before work whose gradients begin at zero."""
        trainer, gpu = self.trainer, self.model.device.type == "cuda"
        self.start = Start(
            batches,
            trainer._total_train_tokens,
            {name: list(v) for name, v in trainer._metrics["train"].items()},
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if gpu else None,
        )

    def run(
        self,
        work: Callable[[], Result],
        less: Callable[[], str],
        again: Callable[[], Result],
    ) -> Result:
        """Return `work()`; if the memory runs out in it, return `again()`.

        Before, the state of `begin` comes back, and `less` lets the trainer need less
        memory. It returns how, for the printed line, or "" if there is no way. Raises
        the error if there is none, the second time, and with several processes.
        """
        start, alone = self.start, self.trainer.args.world_size == 1
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            self.shortage = self._shortage(error)
            if self.used or start is None or not alone:
                raise
        # Here the error no longer exists, nor do the tensors that its frames held.
        self._restore(start)
        memory.release()
        if not (how := less()):
            raise MemoryError("no way to train with less memory is left")
        print(f"{self.shortage}. The step begins again {how}.", flush=True)
        self.used, self.shortage = True, ""
        return again()

    def _restore(self, start: Start) -> None:
        self.model.zero_grad()
        trainer, metrics = self.trainer, self.trainer._metrics["train"]
        trainer._total_train_tokens = start.tokens
        metrics.clear()
        metrics.update({name: list(v) for name, v in start.metrics.items()})
        torch.set_rng_state(start.random)
        if start.random_gpu is not None:
            torch.cuda.set_rng_state(start.random_gpu)

    def earlier(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the micro-batches of the update before this one."""
        places = [i for i, one in enumerate(self.batches) if one is batch]
        return self.batches[: places[0]]

    def largest(self) -> int:
        """Return the tokens of the update's largest micro-batch, with padding."""
        return max(one["input_ids"].numel() for one in self.batches)

    def checkpoint_more(self, tokens: int) -> str:
        """Checkpoint all layers; if they are already, need less memory for each.

        On a GPU their inputs move to RAM, if it has room for micro-batches of `tokens`
        tokens, and else they compute in tiles. Returns in words what was done, or "" if
        there is nothing left to do.
        """
        model = self.model
        layers = checkpointable(model)
        count = len(layers)
        how = f"with gradient checkpointing for all {count} layers"
        inner = lora.find_llama(model)
        fast = patch.FastPath.of(inner) if inner is not None else None
        if fast is None:
            if all(layer.gradient_checkpointing for layer in layers):
                return ""
            checkpoint_first(model, count)
            return f"{how}, which is slower"
        if fast.recompute < count:
            patch.apply(model, count)
            return f"{how}, which is slower"
        if model.device.type == "cpu":
            return ""
        cost = memory.estimate(
            *(model.config, "qlora", 1, tokens),
            recompute=count,
            offload=count,
            fast=True,
        )
        if fast.offload < count and cost.ram <= memory.free_ram():
            patch.apply(model, count, count, fast.tiles, fast.disk)
            return f"{how}, and with their inputs in RAM, which is slower"
        counts = tile_counts(Shape.from_config(model.config))
        if fast.tiles > 1 or not counts:
            return ""
        patch.apply(model, count, fast.offload, counts[-1], fast.disk)
        return f"{how}, each in {counts[-1]} tiles, which is slower"

    def _shortage(self, error: Exception) -> str:
        """Return where the memory ran out, and the numbers."""
        gpu = self.model.device.type == "cuda"
        name = "GPU memory" if gpu else "RAM"
        limit: float = _gpu_limit() if gpu else psutil.virtual_memory().total
        found = REQUEST.search(str(error))
        more = ""
        if found:
            size = f"{int(found[1]) / GIB:,.2f} GiB" if found[1] else found[2]
            more = f", and {size} more were asked for"
        return (
            f"{name} ran out in step {self.trainer.state.global_step + 1}: "
            f"{memory.peak():.2f} of {limit / GIB:.2f} GiB were used{more}"
        )

    def message(self, error: Exception) -> str:
        """Return the sentences that end a training which ran out of memory."""
        plan = self.plan
        parts = [self.shortage or self._shortage(error)]
        if plan and plan.cost.total:
            parts.append(f"The plan was {plan.cost.peak / GIB:.2f} GiB")
        if sizes := [b["input_ids"].shape for b in self.batches if "input_ids" in b]:
            rows, tokens = max(sizes, key=lambda size: size.numel())
            parts.append(
                f"The largest micro-batch of the update has {rows} x {tokens:,} tokens"
            )
        if self.trainer.args.world_size > 1:
            parts.append(
                "The other processes wait for the gradients of this one, so it cannot "
                "go on alone with another plan"
            )
        elif self.used:
            parts.append("Another plan is tried only once, so the training ends")
        elif self.shortage:
            parts.append("No plan needs less memory")
        else:
            parts.append("No other plan helps there")
        parts.append(
            f"Use {SMALLER[_method(self.model)]}, or set MAX_TOKENS lower in "
            "01_create_dataset"
        )
        return ". ".join(parts) + "."


def _gpu_limit() -> float:
    """Return the bytes that torch can have: its own and the free ones."""
    free, total = torch.cuda.mem_get_info()
    share = torch.cuda.get_per_process_memory_fraction()
    return min(share * total, torch.cuda.memory_reserved() + free)


def _method(model: PreTrainedModel) -> str:
    """Return the method of `memory.plan` that trains a model."""
    if not hasattr(model, "peft_config"):
        return "full"
    return "qlora" if getattr(model, "is_loaded_in_4bit", False) else "lora"
