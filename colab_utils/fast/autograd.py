"""The fast path's decoder layer as an autograd function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from colab_utils.fast.layer import Saved
from colab_utils.memory.costs import piece_rows

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
        kept = saved.tensors()
        if layer.checkpoint:
            kept = [*(to_ram(x) if layer.offload else [x])]
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
        if layer.checkpoint:
            x = from_ram(kept, grad.device) if layer.offload else kept[0]
            saved = layer.recompute(x, given)
            del x
        else:
            saved = Saved.of(kept)
        del kept
        need_dx = ctx.needs_input_grad[0]
        dx, grads = layer.backward(grad.contiguous(), saved, given, need_dx)
        return dx, None, *grads


def to_ram(x: torch.Tensor) -> list[torch.Tensor]:
    """Return x (T, width) in RAM, in pieces.

    On a GPU the memory is page-locked. Torch rounds it up to a power of two, and keeps
    it for the next step; equal pieces waste little of it.
    """
    parts = x.split(piece_rows(x.shape[1] * x.element_size()))
    found = [torch.empty_like(p, device="cpu", pin_memory=x.is_cuda) for p in parts]
    for piece, part in zip(found, parts, strict=True):
        piece.copy_(part, non_blocking=True)
    return found


def from_ram(pieces: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return on `device` what `to_ram` has moved."""
    rows, width = sum(len(piece) for piece in pieces), pieces[0].shape[1]
    x = torch.empty(rows, width, dtype=pieces[0].dtype, device=device)
    for part, piece in zip(x.split(len(pieces[0])), pieces, strict=True):
        part.copy_(piece, non_blocking=True)
    return x
