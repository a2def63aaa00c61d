"""The fast path's layers and its last norm as autograd functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from colab_utils.fast import ops
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
        y, saved = layer.forward(x, given)
        kept = saved.tensors()
        if layer.checkpoint:
            kept = [x]
            if layer.offload:
                waiting = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
                kept = [waiting.copy_(x, non_blocking=True)]
        ctx.save_for_backward(*given, *kept)
        ctx.layer, ctx.count = layer, len(given)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the input and of the parameters."""
        layer, given = ctx.layer, ctx.saved_tensors[: ctx.count]
        if layer.checkpoint:
            x = ctx.saved_tensors[ctx.count].to(grad.device, non_blocking=True)
            saved = layer.recompute(x, given)
            del x  # `saved` alone holds the tensors, and `backward` deletes them
        else:
            saved = Saved.of(ctx.saved_tensors[ctx.count :])
        need_dx = ctx.needs_input_grad[0]
        dx, grads = layer.backward(grad.contiguous(), saved, given, need_dx)
        return dx, None, *grads


class NormFunction(torch.autograd.Function):
    """The last RMSNorm: `apply` takes rows (T, width), the weight and epsilon."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Return the norm of each row."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return ops.norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the rows."""
        x, weight = ctx.saved_tensors
        grad = grad.clone()
        dx = ops.norm_backward(grad, x, weight, torch.zeros_like(x), ctx.eps)
        return dx, None, None
