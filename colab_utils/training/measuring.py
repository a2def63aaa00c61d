"""What a run takes in memory, measured: tensor by tensor, and at its peak."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import models
from colab_utils.memory.costs import GIB, Memory

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def held(trainer: Trainer, batch: dict[str, Any] | None = None) -> Memory:
    """Bytes in use, found by one forward and backward pass on the first batch.

    Weights, gradients and optimizer states are counted tensor by tensor, activations
    (here with checkpoints and logits) as the storage that autograd saves. Call it after
    training: before, there are no optimizer states. `batch` is measured instead of the
    first one. What comes and goes within a layer is not counted: on a GPU see `peak`.
    """
    import torch

    model, seen, kept = trainer.model, set(), []

    def new(tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((new(tensor), tensor))  # alive, so that no address is seen twice
        return tensor

    constants = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            constants += [state.absmax, state.code]
            constants += (
                [state.state2.absmax, state.state2.code] if state.nested else []
            )
    trained = [p for p in model.parameters() if p.requires_grad]
    adapters = sum(map(new, trained)) if hasattr(model, "peft_config") else 0
    scales = sum(map(new, constants))
    weights = sum(map(new, [*model.parameters(), *model.buffers()]))
    batch = batch or next(iter(trainer.get_train_dataloader()))
    with (
        models.in_mode(model, training=True),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        trainer.compute_loss_context_manager(),
    ):
        loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    trainer.accelerator.backward(loss)
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    model.zero_grad()
    states = trainer.optimizer.state.values() if trainer.optimizer else ()
    optimizer = sum(
        t.nbytes for state in states for t in state.values() if torch.is_tensor(t)
    )
    return Memory(
        weights=weights,
        constants=scales,
        adapters=adapters,
        gradients=gradients,
        optimizer=optimizer,
        activations=sum(size for size, _ in kept),
    )


def release() -> None:
    """Give back the memory whose names are deleted; `peak` of a GPU begins anew."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """Peak GiB: allocated by torch since `release` on a GPU, else resident in RAM."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return ram()


def ram() -> float:
    """The most GiB that this process has held in RAM since it began."""
    if sys.platform == "linux":  # what `resource` says there may be the parent's peak
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
