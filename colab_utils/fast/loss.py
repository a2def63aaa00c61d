"""The cross-entropy of a model with a large vocabulary, in little memory."""

from __future__ import annotations

from typing import Any

import torch


class CrossEntropy(torch.autograd.Function):
    """Sum the losses of rows (T, width) without a tensor of all their logits.

    The head is frozen, so `forward` computes a chunk's gradient while its logits exist.
    Returns the sum and the number of correct predictions. Sources: Wijmans et al. 2024
    and Liger's fused linear cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `chunk` rows at a time; `head` is (vocabulary, width)."""
        grad = torch.empty_like(x)
        precise = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros((), dtype=precise)
        correct = torch.zeros((), dtype=torch.long, device=x.device)
        for i in range(0, len(x), chunk):
            target = targets[i : i + chunk, None]
            logits = (x[i : i + chunk] @ head.T).to(precise)
            largest, top_1 = logits.max(-1, keepdim=True)
            correct += (top_1 == target).sum()
            # In place: the logits become their softmax, then the gradient.
            logits -= largest
            total -= logits.gather(1, target).sum()
            exponents = logits.exp_().sum(-1, keepdim=True)
            total += exponents.log().sum()
            logits /= exponents
            logits.scatter_add_(1, target, -torch.ones_like(target, dtype=precise))
            torch.mm(logits.to(x.dtype), head, out=grad[i : i + chunk])
            del logits  # before those of the next chunk are computed
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(
        ctx: Any, scale: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        """Scale the gradient that `forward` computed."""
        (grad,) = ctx.saved_tensors
        return (grad * scale).to(grad.dtype), None, None, None
