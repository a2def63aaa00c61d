"""The element-wise GPU kernels of the fast path, in Triton (compute capability 7.5+).

Each kernel reads and writes memory once; PyTorch does so several times. `ops` has the
same functions in PyTorch: for CPUs, and as the reference of the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BYTES = 1024  # of packed 4-bit weights that one program dequantizes


@triton.jit
def _dequantize_nf4(
    packed, absmax, code2, absmax2, offset, code, out, n_bytes, N: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = at < n_bytes
    byte = tl.load(packed + at, inside, 0).to(tl.int32)
    block = at // 32  # 64 weights (32 bytes) share a scale; 256 scales share another
    quantized = tl.load(absmax + block, inside, 0).to(tl.int32)
    scale = tl.load(code2 + quantized) * tl.load(absmax2 + block // 256, inside, 0)
    scale = scale + tl.load(offset)
    first = tl.load(code + (byte >> 4)) * scale
    second = tl.load(code + (byte & 15)) * scale
    both = tl.interleave(first, second).to(out.dtype.element_ty)
    at = tl.program_id(0).to(tl.int64) * 2 * N + tl.arange(0, 2 * N)
    tl.store(out + at, both, at < 2 * n_bytes)


def dequantize_nf4(weight: torch.Tensor, state: Any, out: torch.Tensor) -> None:
    """Write a doubly quantized NF4 weight into `out`; bitsandbytes uses two kernels.

    `state` is the weight's `quant_state`.
    """
    n = weight.numel()
    _dequantize_nf4[(triton.cdiv(n, BYTES),)](
        weight,
        state.absmax,
        state.state2.code,
        state.state2.absmax,
        state.offset,
        state.code,
        out,
        n,
        N=BYTES,
        enable_fp_fusion=False,  # so that it rounds as bitsandbytes does
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
    """Return RMSNorm of rows (T, width)."""
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
    """Return the gradient of x plus `residual`; write the norm's output into `grad`."""
    out, (rows, width) = torch.empty_like(x), x.shape
    block = triton.next_power_of_2(width)
    _norm_backward[(rows,)](
        grad, x, weight, residual, out, width, eps, N=block, num_warps=8
    )
    return out


@triton.jit
def _norm_heads(
    x, q, k, out, heads, kv_heads, width, eps, H: tl.constexpr, D: tl.constexpr
):
    token, total = tl.program_id(0).to(tl.int64), heads + 2 * kv_heads
    head = tl.arange(0, H)[:, None]
    at = tl.arange(0, D)[None, :]
    inside = (head < total) & (at < width)
    place = token * total * width + head * width + at
    value = tl.load(x + place, inside, 0)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / width + eps)[:, None]
    w = tl.load(q + at, at < width, 0).to(tl.float32)
    w = tl.where(head < heads, w, tl.load(k + at, at < width, 0).to(tl.float32))
    normal = (wide * scale * w).to(value.dtype)
    tl.store(out + place, tl.where(head < heads + kv_heads, normal, value), inside)


def norm_heads(
    x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, kv_heads: int, eps: float
) -> torch.Tensor:
    """Return x with RMSNorm in each query and key head; one program for a token."""
    out, width = torch.empty_like(x), len(q)
    heads = x.shape[1] // width - 2 * kv_heads
    _norm_heads[(len(x),)](
        x,
        q,
        k,
        out,
        heads,
        kv_heads,
        width,
        eps,
        H=triton.next_power_of_2(heads + 2 * kv_heads),
        D=triton.next_power_of_2(width),
        num_warps=8,
    )
    return out


@triton.jit
def _norm_heads_backward(
    grad, x, q, k, heads, kv_heads, width, eps, H: tl.constexpr, D: tl.constexpr
):
    token, total = tl.program_id(0).to(tl.int64), heads + 2 * kv_heads
    head = tl.arange(0, H)[:, None]
    at = tl.arange(0, D)[None, :]
    inside = (head < heads + kv_heads) & (at < width)
    place = token * total * width + head * width + at
    value = tl.load(x + place, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    w = tl.load(q + at, at < width, 0).to(tl.float32)
    w = tl.where(head < heads, w, tl.load(k + at, at < width, 0).to(tl.float32))
    g = tl.load(grad + place, inside, 0).to(tl.float32) * w
    normal = value * scale
    back = scale * (g - normal * (tl.sum(g * normal, 1) / width)[:, None])
    tl.store(grad + place, back, inside)


def norm_heads_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    kv_heads: int,
    eps: float,
) -> None:
    """Overwrite `grad`, the gradient of `norm_heads`, with that of its input x."""
    width = len(q)
    heads = x.shape[1] // width - 2 * kv_heads
    _norm_heads_backward[(len(x),)](
        grad,
        x,
        q,
        k,
        heads,
        kv_heads,
        width,
        eps,
        H=triton.next_power_of_2(heads + kv_heads),
        D=triton.next_power_of_2(width),
        num_warps=8,
    )


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
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, sign: float = 1
) -> None:
    """Rotate the first `heads` heads of x (T, heads x D) in place; -1 rotates back."""
    half = cos.shape[-1] // 2
    _rotate[(x.shape[0],)](
        x,
        cos,
        sin,
        x.stride(0),
        half,
        float(sign),  # an integer would be a constant: one kernel for each sign
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
    """Return silu(gate) * up of rows (T, width); both have the same strides."""
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


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Overwrite `gate_up` (T, 2 x width) with its gradient, and `grad` with swiglu."""
    rows, width = grad.shape
    _swiglu_backward[(rows, triton.cdiv(width, 1024))](grad, gate_up, width, N=1024)
