"""The fast path's decoder layer as an autograd function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from colab_utils.fast.kept_inputs import OnDisk, from_ram, to_ram
from colab_utils.fast.layer import Saved

if TYPE_CHECKING:
    from colab_utils.fast.layer import Layer


class LayerFunction(torch.autograd.Function):
    """A decoder layer: `apply` takes the input, the `Layer` and its parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, *given: torch.Tensor
    ) -> torch.Tensor:
        """Return the layer's output, and save what the backward pass needs."""
        layer.gather(1)
        y, saved = layer.forward(x, given)
        kept = [x] if saved is None or layer.checkpoint else saved.tensors()
        if layer.on_disk:
            ctx.file, kept = OnDisk(x), []
        elif layer.offload:
            kept = [*to_ram(x)]
        ctx.save_for_backward(*given, *kept)
        ctx.layer, ctx.count = layer, len(given)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the input and of the parameters."""
        layer, tensors = ctx.layer, list(ctx.saved_tensors)
        # Else autograd holds every tensor until this function returns; the layer
        # deletes each one after its last use.
        ctx.maybe_clear_saved_tensors()
        given, kept = tensors[: ctx.count], tensors[ctx.count :]
        del tensors
        layer.gather(-1)
        grad, need_dx = grad.contiguous(), ctx.needs_input_grad[0]
        if layer.checkpoint:
            if layer.on_disk:
                x = ctx.file.read(grad.device)
            else:
                x = from_ram(kept, grad.device) if layer.offload else kept[0]
            del kept
            dx, grads = layer.backward_from_input(grad, x, given, need_dx)
        else:
            saved = Saved.of(kept)
            del kept
            dx, grads = layer.backward(grad, saved, given, need_dx)
        return dx, None, *grads
