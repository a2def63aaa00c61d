"""The GPU kernels of attention on a cache, in Triton: from compute capability 7.5 on.

`attention` has the same functions in PyTorch, and the tests compare both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


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
    """Rotate q and k of one new token a row, and write k and v into the cache."""
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
    """Return attention of one new token a row over its `lengths` + 1 cached tokens."""
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
