"""The operations of one Llama layer and their gradients, as the fast path needs them.

Rows are tokens: documents stand one after another, without padding. Each function runs
on a GPU through `triton_ops` or one of torch's own kernels, elsewhere in plain torch.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Any, NamedTuple

import torch

CAUSAL = 1  # the mask of a token that sees itself and what was before it


class Documents(NamedTuple):
    """Where documents begin in a row of T tokens: [0, ..., T], and the longest."""

    starts: torch.Tensor
    longest: int


@functools.cache
def has_triton() -> bool:
    """Whether the GPU kernels can be used: Triton comes with torch, but for Windows."""
    return importlib.util.find_spec("triton") is not None


def _triton(x: torch.Tensor) -> bool:
    return x.is_cuda and has_triton()


def _precise(x: torch.Tensor) -> torch.Tensor:
    """In 32 bits at least: the square of 300 is too much for float16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dequantise(weight: torch.nn.Parameter, out: torch.Tensor) -> None:
    """Write a 4-bit weight into `out` (outputs, inputs) in out's dtype."""
    state = weight.quant_state
    nested = state.nested and state.quant_type == "nf4" and state.blocksize == 64
    usual = nested and state.state2.blocksize == 256 and weight.dtype == torch.uint8
    if _triton(out) and usual:
        from colab_utils.fast import kernels as triton_ops

        triton_ops.nf4(weight, state, out)
        return
    import bitsandbytes.functional as bnb

    out.copy_(bnb.dequantize_4bit(weight.data, state))


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of rows (T, width). Zhang and Sennrich 2019."""
    if _triton(x):
        from colab_utils.fast import kernels as triton_ops

        return triton_ops.norm(x, weight, eps)
    y = _precise(x)
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * scale * weight).to(x.dtype)


def add_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add rows y (T, width) to x in place, and return RMSNorm of the sum."""
    if _triton(x):
        from colab_utils.fast import kernels as triton_ops

        return triton_ops.add_norm(x, y, weight, eps)
    return norm(x.add_(y), weight, eps)


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Gradient for x plus `residual`; `grad` is overwritten with the norm's output."""
    if _triton(x):
        from colab_utils.fast import kernels as triton_ops

        return triton_ops.norm_backward(grad, x, weight, residual, eps)
    y = _precise(x)
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    normal, g = y * scale, _precise(grad) * weight
    out = scale * (g - normal * (g * normal).mean(-1, keepdim=True)) + residual
    grad.copy_(normal * weight)
    return out.to(x.dtype)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, sign: float = 1
) -> None:
    """Rotate the first `heads` heads of x (T, more heads x D) in place; -1 turns back.

    Rotary position embedding as transformers lays it out: the halves of a head are the
    two coordinates. Su et al. 2021.
    """
    if _triton(x):
        from colab_utils.fast import kernels as triton_ops

        triton_ops.rotate(x, cos, sin, heads, sign)
        return
    size = cos.shape[-1]
    turned = x[:, : heads * size].view(len(x), heads, size)
    a, b = turned.clone().chunk(2, dim=-1)
    c, s = cos[:, None, : size // 2], sin[:, None, : size // 2] * sign
    turned.copy_(torch.cat([a * c - b * s, b * c + a * s], dim=-1))


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of rows (T, width). Shazeer 2020."""
    if _triton(gate):
        from colab_utils.fast import kernels as triton_ops

        return triton_ops.swiglu(gate, up)
    return (torch.nn.functional.silu(_precise(gate)) * up).to(gate.dtype)


def swiglu_backward(grad: torch.Tensor, both: torch.Tensor) -> None:
    """Overwrite `both` = [gate, up] with its gradient, and `grad` with swiglu."""
    if _triton(both):
        from colab_utils.fast import kernels as triton_ops

        triton_ops.swiglu_backward(grad, both)
        return
    parts = both.chunk(2, dim=-1)
    gate, up, g = (_precise(t) for t in (*parts, grad))
    s = torch.sigmoid(gate)
    silu = gate * s
    d_gate, d_up = g * up * (s + silu * (1 - s)), g * silu
    grad.copy_(silu * up)
    parts[0].copy_(d_gate)
    parts[1].copy_(d_up)


def _heads(qkv: torch.Tensor, heads: int, kv_heads: int) -> list[torch.Tensor]:
    """Queries, keys and values (T, heads, D) of rows that hold them side by side."""
    split = qkv.view(len(qkv), heads + 2 * kv_heads, -1)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)
    if kv_heads == heads:
        return [q, k, v]
    return [q, *(t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))]


def attention(
    qkv: torch.Tensor, heads: int, kv_heads: int, documents: Documents
) -> tuple[torch.Tensor, ...]:
    """Causal attention inside each document, and what its gradient needs.

    qkv is (T, (heads + 2 kv_heads) x D), the result (T, heads x D). On a GPU this is
    the memory-efficient kernel of torch, which needs no mask and exists for 7.5.
    """
    if qkv.is_cuda:
        rows, starts, longest = _rows(documents, len(qkv))
        q, k, v = (t.unflatten(0, rows) for t in _heads(qkv, heads, kv_heads))
        bounds = (starts, starts, longest, longest)
        found = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, *bounds, 0.0, CAUSAL, True
        )
        out, *saved = found[:4]
        return out.view(len(qkv), -1), *saved
    return (_attention(*_heads(qkv, heads, kv_heads), documents).flatten(1),)


def _rows(documents: Documents, tokens: int) -> tuple[tuple[int, int], Any, int]:
    """Documents of equal length as rows of a batch: the kernel splits those better."""
    count = len(documents.starts) - 1
    if count * documents.longest == tokens:
        return (count, documents.longest), None, documents.longest
    return (1, tokens), *documents


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """The same on a CPU: documents as padded rows, or one by one where that is less."""
    starts, longest = documents
    lengths, place = starts.diff()[:, None], torch.arange(longest)
    if len(lengths) * longest > 4 * len(q):
        bounds = itertools.pairwise(starts.tolist())
        parts = (_causal(*(t[None, a:b] for t in (q, k, v)))[0] for a, b in bounds)
        return torch.cat(list(parts))
    index = (starts[:-1, None] + place).clamp(max=len(q) - 1)
    # What fills up a row comes after its tokens, and they don't look ahead.
    return _causal(*(t[index] for t in (q, k, v)))[place < lengths]


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of rows (rows, tokens, heads, D)."""
    given = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)
    return out.transpose(1, 2)


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
    """Rotate q and k of one new token a row, and put k and v into the cache.

    q is (rows, heads x D), k and v (rows, kv_heads x D), cos and sin (size, D), keys
    and values (rows, size, kv_heads, D); lengths (rows,) say how many tokens are there.
    """
    if _triton(q):
        from colab_utils.fast import kernels as triton_ops

        triton_ops.rotate_and_store(q, k, v, cos, sin, keys, values, lengths)
        return
    kv_heads, size = keys.shape[2:]
    for x in (q, k):
        rotate(x, cos[lengths], sin[lengths], x.shape[1] // size)
    row = torch.arange(len(q), device=q.device)
    keys[row, lengths] = k.view(-1, kv_heads, size)
    values[row, lengths] = v.view(-1, kv_heads, size)


def attention_step(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Attention of a row's new token over its `lengths` + 1 tokens in the cache."""
    if _triton(q):
        from colab_utils.fast import kernels as triton_ops

        return triton_ops.attention_step(q, keys, values, lengths)
    kv_heads, size = keys.shape[2:]
    q = q.view(len(q), kv_heads, -1, size)
    there = torch.arange(keys.shape[1], device=q.device) <= lengths[:, None]
    scores = torch.einsum("rghd,rtgd->rght", q * size**-0.5, keys)
    scores = scores.masked_fill(~there[:, None, None], float("-inf"))
    return torch.einsum("rght,rtgd->rghd", scores.softmax(-1), values).flatten(1)


def attention_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    heads: int,
    kv_heads: int,
    documents: Documents,
    out: torch.Tensor,
    *saved: torch.Tensor,
) -> torch.Tensor:
    """The gradient for qkv, in its shape."""
    q, k, v = _heads(qkv, heads, kv_heads)
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
        grads = [t.flatten(0, 1) for t in found[:3]]
    else:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            again = _attention(*leaves, documents)
        grads = torch.autograd.grad(again, leaves, grad.view_as(again))
    shape = (len(qkv), kv_heads, heads // kv_heads, -1)
    dk, dv = (t.reshape(shape).sum(2).flatten(1) for t in grads[1:])
    return torch.cat([grads[0].flatten(1), dk, dv], dim=1)


class CrossEntropy(torch.autograd.Function):
    """Sum of the losses of rows (T, width), with no tensor of all their logits.

    The head is frozen, so a chunk's gradient can be made while its logits are there.
    Returns the sum and the number of right predictions. After Wijmans et al. 2024 and
    Liger's fused linear cross-entropy.
    """

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grad = torch.empty_like(x)
        precise = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros((), dtype=precise)
        right = torch.zeros((), dtype=torch.long, device=x.device)
        for i in range(0, len(x), chunk):
            target = targets[i : i + chunk, None]
            logits = (x[i : i + chunk] @ head.T).to(precise)
            largest, likeliest = logits.max(-1, keepdim=True)
            right += (likeliest == target).sum()
            # in place from the logits to their softmax, to its gradient
            logits -= largest
            total -= logits.gather(1, target).sum()
            exponents = logits.exp_().sum(-1, keepdim=True)
            total += exponents.log().sum()
            logits /= exponents
            logits.scatter_add_(1, target, -torch.ones_like(target, dtype=precise))
            torch.mm(logits.to(x.dtype), head, out=grad[i : i + chunk])
            del logits  # before the next chunk's are made
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx, scale: torch.Tensor, _: torch.Tensor) -> tuple:
        (grad,) = ctx.saved_tensors
        return (grad * scale).to(grad.dtype), None, None, None
