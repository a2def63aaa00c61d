"""The cross-entropy of a model with a large vocabulary, in little memory."""

from __future__ import annotations

from typing import Any

import torch

from colab_utils.fast import ops


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
            logits = x[i : i + chunk] @ head.T
            losses, hits = ops.cross_entropy(logits, targets[i : i + chunk])
            total += losses.sum()
            correct += hits.sum()
            # The logits have become their gradient.
            torch.mm(logits, head, out=grad[i : i + chunk])
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
