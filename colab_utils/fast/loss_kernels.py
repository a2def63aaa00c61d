"""The GPU kernel of the loss, in Triton: compute capability 7.5 and newer.

`ops` has the same function in PyTorch, and the tests compare both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _cross_entropy(logits, targets, losses, hits, vocab, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target, at = tl.load(targets + row), tl.arange(0, N)
    first = logits + row * vocab
    wanted = tl.load(first + target).to(tl.float32)
    # Each lane keeps its largest logit, and the sum of exponents relative to it.
    best = tl.full((N,), -1e30, tl.float32)
    total = tl.zeros((N,), tl.float32)
    for start in range(0, vocab, N):
        inside = start + at < vocab
        x = tl.load(first + start + at, inside, -1e30).to(tl.float32)
        top = tl.maximum(best, x)
        total = total * tl.exp(best - top) + tl.where(inside, tl.exp(x - top), 0)
        best = top
    largest = tl.max(best, 0)
    total = tl.sum(total * tl.exp(best - largest), 0)
    tl.store(losses + row, largest - wanted + tl.log(total))
    top_1 = tl.full((N,), vocab, tl.int32)  # the first token with the largest logit
    for start in range(0, vocab, N):
        inside = start + at < vocab
        x = tl.load(first + start + at, inside, -1e30).to(tl.float32)
        top_1 = tl.minimum(top_1, tl.where(x == largest, start + at, vocab))
        share = tl.exp(x - largest) / total
        share = tl.where(start + at == target, share - 1, share)
        tl.store(first + start + at, share, inside)
    tl.store(hits + row, tl.min(top_1, 0) == target)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's loss and hit; overwrite `logits` with the gradient.

    The logits are read twice and written once, in their own dtype.
    """
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    hits = torch.empty(rows, dtype=torch.bool, device=logits.device)
    block = min(4096, triton.next_power_of_2(vocab))
    _cross_entropy[(rows,)](logits, targets, losses, hits, vocab, N=block, num_warps=8)
    return losses, hits
