"""Causal attention inside documents, its gradient, and a decoding step on a cache.

Rows are tokens, as in `ops`. On a GPU, whole documents use a kernel of torch, and a
step on a cache uses a Triton kernel.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from colab_utils.fast import ops

CAUSAL = (
    1  # the kernel's number for a causal mask: a token sees itself and earlier tokens
)


class Documents(NamedTuple):
    """Where documents begin in a row of T tokens, [0, ..., T], and the longest one."""

    starts: torch.Tensor
    longest: int


class Group(NamedTuple):
    """Rows of a batch whose documents are computed together."""

    rows: slice
    documents: Documents


class Shared(NamedTuple):
    """Documents that begin with the same tokens, of which a batch holds one copy.

    Attention computes them as whole documents: `expand` has the batch's token for each
    of theirs, and `back` the first copy of each of the batch's tokens.
    """

    expand: torch.Tensor
    back: torch.Tensor


def grouped_attention(
    qkv: torch.Tensor,
    heads: int,
    kv_heads: int,
    groups: list[Group],
    shared: Shared | None = None,
) -> tuple[torch.Tensor, ...]:
    """Return `attention` of all groups, and what the gradients need, in turn."""
    if shared:
        out, *saved = grouped_attention(qkv[shared.expand], heads, kv_heads, groups)
        return out[shared.back], *saved
    if len(groups) == 1:
        return attention(qkv, heads, kv_heads, groups[0].documents)
    width = heads * (qkv.shape[1] // (heads + 2 * kv_heads))
    out, saved = qkv.new_empty(len(qkv), width), []
    for rows, documents in groups:
        out[rows], *kept = attention(qkv[rows], heads, kv_heads, documents)
        saved += kept
    return out, *saved


def grouped_attention_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    heads: int,
    kv_heads: int,
    groups: list[Group],
    shared: Shared | None,
    out: torch.Tensor,
    *saved: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of qkv, possibly in its memory.

    `out` and `saved` are what `grouped_attention` returned.
    """
    if shared:
        whole = grad.new_zeros(len(shared.expand), grad.shape[1])
        whole[shared.back] = grad
        qkv_of_copies, out = qkv[shared.expand], out[shared.expand]
        found = grouped_attention_backward(
            whole, qkv_of_copies, heads, kv_heads, groups, None, out, *saved
        )
        return torch.zeros_like(qkv).index_add_(0, shared.expand, found)
    if len(groups) == 1:
        where = (heads, kv_heads, groups[0].documents)
        return attention_backward(grad, qkv, *where, out, *saved)
    count = len(saved) // len(groups)
    for i, (rows, documents) in enumerate(groups):
        qkv[rows] = attention_backward(
            grad[rows],
            qkv[rows],
            *(heads, kv_heads, documents),
            out[rows],
            *saved[i * count : (i + 1) * count],
        )
    return qkv


def attention(
    qkv: torch.Tensor, heads: int, kv_heads: int, documents: Documents
) -> tuple[torch.Tensor, ...]:
    """Return causal attention inside each document, and what its gradient needs.

    qkv is (T, (heads + 2 kv_heads) x D), the result (T, heads x D). On a GPU this calls
    torch's memory-efficient kernel, which needs no mask and runs on compute capability
    7.5.
    """
    if qkv.is_cuda:
        rows, starts, longest = _rows(documents, len(qkv))
        q, k, v = (t.unflatten(0, rows) for t in _split_heads(qkv, heads, kv_heads))
        bounds = (starts, starts, longest, longest)
        found = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, *bounds, 0.0, CAUSAL, True
        )
        out, *saved = found[:4]
        return out.view(len(qkv), -1), *saved
    q, k, v = _split_heads(qkv, heads, kv_heads)
    return (_reference(q, k, v, documents).flatten(1),)


def attention_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    heads: int,
    kv_heads: int,
    documents: Documents,
    out: torch.Tensor,
    *saved: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of qkv; `out` and `saved` are what `attention` returned."""
    q, k, v = _split_heads(qkv, heads, kv_heads)
    if qkv.is_cuda:
        rows, starts, longest = _rows(documents, len(qkv))
        given = [t.reshape(q.shape).unflatten(0, rows) for t in (grad, q, k, v)]
        lse, *seeds = saved
        found = torch.ops.aten._efficient_attention_backward(
            *given,
            None,
            out.view(q.shape).unflatten(0, rows),
            *(starts, starts, longest, longest),
            lse,
            0.0,
            *seeds,
            CAUSAL,
            False,
            # one tensor (T, 3, heads, D): the layout of qkv, so nothing is copied
            shared_storage_dqdkdv=True,
        )
        if kv_heads == heads:
            width = 3 * q[0].numel()
            return found[0].as_strided((len(qkv), width), (width, 1))
        dq, dk, dv = (t.flatten(0, 1) for t in found[:3])
    else:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            again = _reference(leaves[0], leaves[1], leaves[2], documents)
        dq, dk, dv = torch.autograd.grad(again, leaves, grad.view_as(again))
    shape = (len(qkv), kv_heads, heads // kv_heads, -1)
    dk, dv = (t.reshape(shape).sum(2).flatten(1) for t in (dk, dv))
    return torch.cat([dq.flatten(1), dk, dv], dim=1)


def _split_heads(qkv: torch.Tensor, heads: int, kv_heads: int) -> list[torch.Tensor]:
    """Return queries, keys and values as (T, heads, D); grouped heads are repeated."""
    split = qkv.view(len(qkv), heads + 2 * kv_heads, -1)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)
    if kv_heads == heads:
        return [q, k, v]
    return [q, *(t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))]


def _rows(
    documents: Documents, tokens: int
) -> tuple[tuple[int, int], torch.Tensor | None, int]:
    """Return the batch shape, the starts and the longest length for the kernel.

    Documents of equal length are the rows of a batch and need no starts.
    """
    count = len(documents.starts) - 1
    if count * documents.longest == tokens:
        return (count, documents.longest), None, documents.longest
    return (1, tokens), documents.starts, documents.longest


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """Return attention on a CPU, with documents as padded rows.

    Documents are computed one by one if padding would be more than three quarters.
    """
    starts, longest = documents
    lengths, place = starts.diff()[:, None], torch.arange(longest)
    if len(lengths) * longest > 4 * len(q):
        bounds = itertools.pairwise(starts.tolist())
        parts = (
            _causal(q[None, a:b], k[None, a:b], v[None, a:b])[0] for a, b in bounds
        )
        return torch.cat(list(parts))
    index = (starts[:-1, None] + place).clamp(max=len(q) - 1)
    # The padding comes after a row's tokens, which attend to earlier ones only.
    return _causal(q[index], k[index], v[index])[place < lengths]


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention of rows (rows, tokens, heads, D)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2)


@ops.on_gpu("attention_kernels")
def rotate_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Rotate q and k of one new token a row, and write k and v into the cache.

    q is (rows, heads x D), k and v (rows, kv_heads x D), cos and sin (size, D), keys
    and values (rows, size, kv_heads, D). Each row's cache holds `lengths` (rows,)
    tokens. The rows may be one row of a cache, expanded.
    """
    kv_heads, size = keys.shape[2:]
    for x in (q, k):
        ops.rotate(x, cos[lengths], sin[lengths], x.shape[1] // size)
    # A view that is expanded can't be written to, so its only row is.
    row = torch.arange(len(q), device=q.device) if keys.stride(0) else 0
    keys[row, lengths] = k.view(-1, kv_heads, size)
    values[row, lengths] = v.view(-1, kv_heads, size)


@ops.on_gpu("attention_kernels")
def attention_step(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Return attention of one new token a row over its `lengths` + 1 cached tokens."""
    kv_heads, size = keys.shape[2:]
    q = q.view(len(q), kv_heads, -1, size)
    there = torch.arange(keys.shape[1], device=q.device) <= lengths[:, None]
    scores = torch.einsum("rghd,rtgd->rght", q * size**-0.5, keys)
    scores = scores.masked_fill(~there[:, None, None], float("-inf"))
    return torch.einsum("rght,rtgd->rghd", scores.softmax(-1), values).flatten(1)
