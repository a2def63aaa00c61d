"""The element-wise GPU kernels of the fast path, in Triton: from a T4 (7.5) on.

Each does in one pass over memory what plain torch does in several. `ops` has the same
in torch, for CPUs and as the reference: tests compare the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BYTES = 1024  # of packed 4-bit weights that one program unpacks


@triton.jit
def _dequantise_nf4(
    packed, absmax, code2, absmax2, offset, code, out, n_bytes, N: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = at < n_bytes
    byte = tl.load(packed + at, inside, 0).to(tl.int32)
    block = at // 32  # 64 weights, 32 bytes, share a scale; 256 scales share another
    quantised = tl.load(absmax + block, inside, 0).to(tl.int32)
    scale = tl.load(code2 + quantised) * tl.load(absmax2 + block // 256, inside, 0)
    scale = scale + tl.load(offset)
    first = tl.load(code + (byte >> 4)) * scale
    second = tl.load(code + (byte & 15)) * scale
    both = tl.interleave(first, second).to(out.dtype.element_ty)
    at = tl.program_id(0).to(tl.int64) * 2 * N + tl.arange(0, 2 * N)
    tl.store(out + at, both, at < 2 * n_bytes)


def nf4(weight: torch.Tensor, state, out: torch.Tensor) -> None:
    """Unpack a doubly quantised NF4 weight into `out`, as bitsandbytes does in two."""
    n = weight.numel()
    _dequantise_nf4[(triton.cdiv(n, BYTES),)](
        weight,
        state.absmax,
        state.state2.code,
        state.state2.absmax,
        state.offset,
        state.code,
        out,
        n,
        N=BYTES,
        enable_fp_fusion=False,  # rounded as bitsandbytes rounds
    )


@triton.jit
def _norm(x, weight, out, width, eps, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, N)
    inside = at < width
    value = tl.load(x + row + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + at, inside, 0).to(tl.float32)
    tl.store(out + row + at, value * scale * w, inside)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of rows (T, width)."""
    out, (rows, width) = torch.empty_like(x), x.shape
    block = triton.next_power_of_2(width)
    _norm[(rows,)](x, weight, out, width, eps, N=block, num_warps=8)
    return out


@triton.jit
def _add_norm(x, y, weight, out, width, eps, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, N)
    inside = at < width
    both = tl.load(x + row + at, inside, 0) + tl.load(y + row + at, inside, 0)
    tl.store(x + row + at, both, inside)
    value = both.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + at, inside, 0).to(tl.float32)
    tl.store(out + row + at, value * scale * w, inside)


def add_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add rows y (T, width) to x in place, and return RMSNorm of the sum."""
    out, (rows, width) = torch.empty_like(x), x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](x, y, weight, out, width, eps, N=block, num_warps=8)
    return out


@triton.jit
def _norm_backward(grad, x, weight, residual, out, width, eps, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, N)
    inside = at < width
    value = tl.load(x + row + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + at, inside, 0).to(tl.float32)
    g = tl.load(grad + row + at, inside, 0).to(tl.float32) * w
    normal = value * scale
    back = scale * (g - normal * (tl.sum(g * normal, 0) / width))
    back += tl.load(residual + row + at, inside, 0).to(tl.float32)
    tl.store(out + row + at, back, inside)
    tl.store(grad + row + at, normal * w, inside)


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Gradient for x plus `residual`; `grad` is overwritten with the norm's output."""
    out, (rows, width) = torch.empty_like(x), x.shape
    block = triton.next_power_of_2(width)
    _norm_backward[(rows,)](
        grad, x, weight, residual, out, width, eps, N=block, num_warps=8
    )
    return out


@triton.jit
def _rotate(x, cos, sin, stride, half, sign, heads, H: tl.constexpr, D: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, H)[:, None]
    at = tl.arange(0, D)[None, :]
    inside = (head < heads) & (at < half)
    c = tl.load(cos + token * 2 * half + at, at < half, 0).to(tl.float32)
    s = tl.load(sin + token * 2 * half + at, at < half, 0).to(tl.float32) * sign
    first = x + token * stride + head * 2 * half + at
    a = tl.load(first, inside, 0).to(tl.float32)
    b = tl.load(first + half, inside, 0).to(tl.float32)
    tl.store(first, a * c - b * s, inside)
    tl.store(first + half, b * c + a * s, inside)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, sign: float
) -> None:
    """Rotate the first `heads` heads of x (T, heads x D) in place; -1 turns back."""
    half = cos.shape[-1] // 2
    _rotate[(x.shape[0],)](
        x,
        cos,
        sin,
        x.stride(0),
        half,
        float(sign),  # an integer would be compiled in, once for each sign
        heads,
        H=triton.next_power_of_2(heads),
        D=triton.next_power_of_2(half),
        num_warps=8,
    )


@triton.jit
def _swiglu(gate, up, out, stride, width, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * N + tl.arange(0, N)
    inside = at < width
    g = tl.load(gate + row * stride + at, inside, 0).to(tl.float32)
    u = tl.load(up + row * stride + at, inside, 0).to(tl.float32)
    tl.store(out + row * width + at, g * tl.sigmoid(g) * u, inside)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of rows (T, width) whose strides are the same."""
    rows, width = gate.shape
    out = gate.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 1024))
    _swiglu[grid](gate, up, out, gate.stride(0), width, N=1024)
    return out


@triton.jit
def _swiglu_backward(grad, both, width, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * N + tl.arange(0, N)
    inside = at < width
    first, second = both + row * 2 * width + at, both + row * 2 * width + width + at
    gate = tl.load(first, inside, 0).to(tl.float32)
    up = tl.load(second, inside, 0).to(tl.float32)
    g = tl.load(grad + row * width + at, inside, 0).to(tl.float32)
    s = tl.sigmoid(gate)
    silu = gate * s
    tl.store(first, g * up * (s + silu * (1 - s)), inside)
    tl.store(second, g * silu, inside)
    tl.store(grad + row * width + at, silu * up, inside)


def swiglu_backward(grad: torch.Tensor, both: torch.Tensor) -> None:
    """Overwrite `both` with its gradient, and `grad` with swiglu(both)."""
    rows, width = grad.shape
    _swiglu_backward[(rows, triton.cdiv(width, 1024))](grad, both, width, N=1024)


@triton.jit
def _rotate_and_store(
    q, k, v, cos, sin, keys, values, lengths, size, half, heads, kv_heads,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(lengths + row).to(tl.int64)
    at = tl.arange(0, D)[None, :]
    c = tl.load(cos + place * 2 * half + at, at < half, 0).to(tl.float32)
    s = tl.load(sin + place * 2 * half + at, at < half, 0).to(tl.float32)
    head = tl.arange(0, H)[:, None]
    inside = (head < heads) & (at < half)
    first = q + (row * heads + head) * 2 * half + at
    a = tl.load(first, inside, 0).to(tl.float32)
    b = tl.load(first + half, inside, 0).to(tl.float32)
    tl.store(first, a * c - b * s, inside)
    tl.store(first + half, b * c + a * s, inside)
    head = tl.arange(0, K)[:, None]
    inside = (head < kv_heads) & (at < half)
    first = (row * kv_heads + head) * 2 * half + at
    to = ((row * size + place) * kv_heads + head) * 2 * half + at
    a = tl.load(k + first, inside, 0).to(tl.float32)
    b = tl.load(k + first + half, inside, 0).to(tl.float32)
    tl.store(keys + to, a * c - b * s, inside)
    tl.store(keys + to + half, b * c + a * s, inside)
    tl.store(values + to, tl.load(v + first, inside, 0), inside)
    tl.store(values + to + half, tl.load(v + first + half, inside, 0), inside)


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
    """Rotate q and k of one new token a row, and put k and v into the cache."""
    size, kv_heads, width = keys.shape[1:]
    heads = q.shape[1] // width
    _rotate_and_store[(len(q),)](
        q,
        k,
        v,
        cos,
        sin,
        keys,
        values,
        lengths,
        size,
        width // 2,
        heads,
        kv_heads,
        H=triton.next_power_of_2(heads),
        K=triton.next_power_of_2(kv_heads),
        D=triton.next_power_of_2(width // 2),
        num_warps=8,
    )


@triton.jit
def _attention_step(
    q, keys, values, lengths, out, size, heads, kv_heads, width, scale,
    N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    count = tl.load(lengths + row) + 1
    at = tl.arange(0, D)
    inside = at < width
    mine = (row * heads + head) * width + at
    x = tl.load(q + mine, inside, 0).to(tl.float32) * scale
    first = (
        row * size * kv_heads * width
        + head // (heads // kv_heads) * width
        + at[None, :]
    )
    best = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    found = tl.zeros((D,), tl.float32)
    for start in range(0, count, N):
        place = (start + tl.arange(0, N))[:, None]
        there = (place < count) & inside[None, :]
        k = tl.load(keys + first + place * kv_heads * width, there, 0).to(tl.float32)
        score = tl.sum(k * x[None, :], 1)
        score = tl.where(start + tl.arange(0, N) < count, score, float("-inf"))
        top = tl.maximum(best, tl.max(score, 0))
        weight, fade = tl.exp(score - top), tl.exp(best - top)
        v = tl.load(values + first + place * kv_heads * width, there, 0).to(tl.float32)
        total = total * fade + tl.sum(weight, 0)
        found = found * fade + tl.sum(weight[:, None] * v, 0)
        best = top
    tl.store(out + mine, found / total, inside)


def attention_step(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Attention of one new token a row over the `lengths` + 1 tokens of its cache."""
    size, kv_heads, width = keys.shape[1:]
    out, heads = torch.empty_like(q), q.shape[1] // width
    _attention_step[(len(q), heads)](
        q,
        keys,
        values,
        lengths,
        out,
        size,
        heads,
        kv_heads,
        width,
        width**-0.5,
        N=32,
        D=triton.next_power_of_2(width),
    )
    return out
