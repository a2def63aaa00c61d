"""The last norm and the cross-entropy of a large vocabulary, in little memory."""

from __future__ import annotations

from typing import Any

import torch

from colab_utils.fast import ops


class NormedCrossEntropy(torch.autograd.Function):
    """The losses of rows x (T, width) without a tensor of all their logits.

    `apply` takes x, the weight and epsilon of the last RMSNorm, the head (vocabulary,
    width), the targets (T,), -100 where a row has none, and the rows of a chunk. It
    returns the losses (T,), 0 without a target, and the number of correct predictions.
    Norm and head are frozen, so `forward` computes a chunk's gradient while its logits
    exist. Sources: Wijmans et al. 2024 and Liger's fused linear cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        head: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses, and keep the gradient of the norm's output."""
        trained = (targets != -100).nonzero().squeeze(1)
        grad = torch.zeros_like(x)
        precise = torch.promote_types(x.dtype, torch.float32)
        losses = x.new_zeros(len(x), dtype=precise)
        correct = torch.zeros((), dtype=torch.long, device=x.device)
        for rows in trained.split(chunk):
            normal = ops.norm(x[rows], weight, eps)
            logits = normal @ head.T
            losses[rows], hits = ops.cross_entropy(logits, targets[rows])
            correct += hits.sum()
            # The logits have become their gradient.
            grad[rows] = torch.mm(logits, head, out=normal)
            del logits  # before those of the next chunk are computed
        ctx.save_for_backward(x, weight, grad)
        ctx.trained, ctx.eps, ctx.chunk = trained, eps, chunk
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(
        ctx: Any, scales: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` kept, and take them through the norm."""
        x, weight, grad = ctx.saved_tensors
        for rows in ctx.trained.split(ctx.chunk):
            part = (grad[rows] * scales[rows, None]).to(grad.dtype)
            none = torch.zeros_like(part)
            grad[rows] = ops.norm_backward(part, x[rows], weight, none, ctx.eps)
        return grad, None, None, None, None, None
