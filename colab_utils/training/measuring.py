"""The memory of a training step, measured tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from colab_utils import models
from colab_utils.memory import Memory
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


class StorageCounter:
    """Counts the bytes of tensors; a storage that several tensors share counts once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        # So that torch reuses no address. A tensor would keep its graph alive, which
        # holds the hook that holds this counter: such a circle is never freed.
        self.alive: list[torch.UntypedStorage] = []

    def add(self, tensors: Iterable[torch.Tensor]) -> int:
        """Return the bytes of the storages that were not counted before."""
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.seen:
                self.seen.add(storage.data_ptr())
                total += storage.nbytes()
            self.alive.append(storage)
        return total


def memory_held(trainer: Trainer, batch: dict[str, Any] | None = None) -> Memory:
    """Return the bytes in use after a forward and backward pass on one batch.

    Weights, gradients and optimizer states are counted tensor by tensor. Activations
    are the storages that autograd saves; checkpoints and logits are among them.
    Temporary tensors are not counted: on a GPU see `memory.peak`. `batch` is the
    trainer's first one unless given. Call this after training: there are no optimizer
    states before.
    """
    import torch

    model, counter = model_of(trainer), StorageCounter()
    trained = [p for p in model.parameters() if p.requires_grad]
    adapters = counter.add(trained) if hasattr(model, "peft_config") else 0
    scales = counter.add(quantization_scales(model))
    weights = counter.add([*model.parameters(), *model.buffers()])
    batch = batch or next(iter(trainer.get_train_dataloader()))
    activations = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal activations
        activations += counter.add([tensor])
        return tensor

    with (
        models.in_mode(model, training=True),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        trainer.compute_loss_context_manager(),
    ):
        loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    trainer.accelerator.backward(loss)
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    model.zero_grad()
    return Memory(
        weights=weights,
        scales=scales,
        adapters=adapters,
        gradients=gradients,
        optimizer=optimizer_bytes(trainer),
        activations=activations,
    )


def quantization_scales(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the scales and code tables with which bitsandbytes dequantizes weights."""
    found = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found += [state.absmax, state.code]
            found += [state.state2.absmax, state.state2.code] if state.nested else []
    return found


def optimizer_bytes(trainer: Trainer) -> int:
    """Return the bytes of the optimizer's states, 0 before the first step."""
    import torch

    states = trainer.optimizer.state.values() if trainer.optimizer else ()
    tensors = [t for state in states for t in state.values() if torch.is_tensor(t)]
    return sum(tensor.nbytes for tensor in tensors)
