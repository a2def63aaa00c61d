"""The element-wise GPU kernels of the fast path, in Triton: from a T4 (7.5) on.

Each does in one pass over memory what plain torch does in several. `ops` has the same
in torch, for CPUs and as the reference: tests compare the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from transformers import LlamaConfig

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
def _swiglu(both, out, width, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * N + tl.arange(0, N)
    inside = at < width
    gate = tl.load(both + row * 2 * width + at, inside, 0).to(tl.float32)
    up = tl.load(both + row * 2 * width + width + at, inside, 0).to(tl.float32)
    tl.store(out + row * width + at, gate * tl.sigmoid(gate) * up, inside)


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of `both` = [gate, up] (T, 2 x width)."""
    rows, width = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, width)
    _swiglu[(rows, triton.cdiv(width, 1024))](both, out, width, N=1024)
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


def compile_for(config: LlamaConfig, dtype: torch.dtype, device: str = "cuda") -> None:
    """Run each kernel once on one token of a model's shapes, so that it is compiled.

    Triton compiles for what it is called with: dtypes, and which sizes divide by 16.
    """
    import bitsandbytes.functional as bnb

    width, inner = config.hidden_size, config.intermediate_size
    size = config.head_dim or width // config.num_attention_heads
    kept = config.num_key_value_heads
    turned = config.num_attention_heads + kept

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, weight = ones(1, width), ones(width)
    norm_backward(norm(x, weight, config.rms_norm_eps), x, weight, x, 1e-5)
    rotate(ones(1, (turned + kept) * size), ones(1, size), ones(1, size), turned, 1)
    both = ones(1, 2 * inner)
    swiglu_backward(swiglu(both), both)
    packed, state = bnb.quantize_4bit(
        ones(64, 64), quant_type="nf4", compress_statistics=True
    )
    nf4(packed, state, ones(64, 64))
