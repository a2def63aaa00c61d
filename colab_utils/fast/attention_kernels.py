"""The GPU kernels of attention on a cache, in Triton: from compute capability 7.5 on.

`attention` has the same functions in PyTorch, and the tests compare both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_PARTS = 32  # of the tokens in a cache


@triton.jit
def _rotate_and_store(
    q, k, v, cos, sin, keys, values, lengths, stride, half, heads, kv_heads,
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
    to = row * stride + (place * kv_heads + head) * 2 * half + at
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
    kv_heads, width = keys.shape[2:]
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
        keys.stride(0),
        width // 2,
        heads,
        kv_heads,
        H=triton.next_power_of_2(heads),
        K=triton.next_power_of_2(kv_heads),
        D=triton.next_power_of_2(width // 2),
        num_warps=8,
    )


@triton.jit
def _attention_part(
    q, keys, values, lengths, sums, found, out, stride, heads, kv_heads, width, scale,
    N: tl.constexpr, D: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, parts = tl.program_id(2), tl.num_programs(2)
    count = tl.load(lengths + row) + 1
    share = tl.cdiv(tl.cdiv(count, N), parts) * N
    at = tl.arange(0, D)
    inside = at < width
    mine = (row * heads + head) * width + at
    x = tl.load(q + mine, inside, 0).to(tl.float32) * scale
    first = row * stride + head // (heads // kv_heads) * width + at[None, :]
    best = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mean = tl.zeros((D,), tl.float32)
    end = tl.minimum(count, (part + 1) * share)
    for start in range(part * share, end, N):
        place = (start + tl.arange(0, N))[:, None]
        there = (place < end) & inside[None, :]
        k = tl.load(keys + first + place * kv_heads * width, there, 0).to(tl.float32)
        v = tl.load(values + first + place * kv_heads * width, there, 0).to(tl.float32)
        score = tl.sum(k * x[None, :], 1)
        score = tl.where(start + tl.arange(0, N) < end, score, float("-inf"))
        top = tl.maximum(best, tl.max(score, 0))
        weight, fade = tl.exp(score - top), tl.exp(best - top)
        total = total * fade + tl.sum(weight, 0)
        mean = mean * fade + tl.sum(weight[:, None] * v, 0)
        best = top
    if ALONE:
        tl.store(out + mine, mean / total, inside)
    else:
        place = (row * heads + head) * parts + part
        tl.store(sums + 2 * place, best)
        tl.store(sums + 2 * place + 1, total)
        tl.store(found + place * width + at, mean, inside)


@triton.jit
def _shared_part(
    q, keys, values, lengths, sums, found, out, rows, heads, kv_heads, width, scale,
    N: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    head, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, at = tl.arange(0, R), tl.arange(0, D)
    inside, used = at < width, row < rows
    count = tl.load(lengths + row, used, 0) + 1
    share = tl.cdiv(tl.cdiv(tl.max(count, 0), N), parts) * N
    first = head // (heads // kv_heads) * width + at[None, :]
    mine = (row * heads + head)[:, None] * width + at[None, :]
    there = used[:, None] & inside[None, :]
    x = tl.load(q + mine, there, 0).to(tl.float32)[None] * scale
    best = tl.full((R,), float("-inf"), tl.float32)
    total = tl.zeros((R,), tl.float32)
    mean = tl.zeros((R, D), tl.float32)
    end = tl.minimum(tl.max(count, 0), (part + 1) * share)
    last = tl.minimum(count, end)[None, :]
    for start in range(part * share, end, N):
        place = (start + tl.arange(0, N))[:, None]
        some = (place < end) & inside[None, :]
        here = first + place * kv_heads * width
        k = tl.load(keys + here, some, 0).to(tl.float32)
        v = tl.load(values + here, some, 0).to(tl.float32)
        # One sum for all rows, because the threads wait for each other in each sum.
        score = tl.sum(k[:, None] * x, 2)
        score = tl.where(place < last, score, float("-inf"))
        top = tl.maximum(best, tl.max(score, 0))
        # A row whose tokens all come before this part has seen nothing: 0 avoids NaN.
        high = tl.where(top == float("-inf"), 0, top)
        weight, fade = tl.exp(score - high[None, :]), tl.exp(best - high)
        total = total * fade + tl.sum(weight, 0)
        mean = mean * fade[:, None] + tl.sum(weight[:, :, None] * v[:, None], 0)
        best = top
    if ALONE:
        tl.store(out + mine, mean / total[:, None], there)
    else:
        place = (row * heads + head) * parts + part
        tl.store(sums + 2 * place, best, used)
        tl.store(sums + 2 * place + 1, total, used)
        tl.store(found + place[:, None] * width + at[None, :], mean, there)


@triton.jit
def _join_parts(
    sums, found, out, parts, width, P: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    one = tl.program_id(0).to(tl.int64)
    part, at = tl.arange(0, P), tl.arange(0, D)
    inside = at < width
    place = one * parts + part
    best = tl.load(sums + 2 * place, part < parts, float("-inf"))
    total = tl.load(sums + 2 * place + 1, part < parts, 0)
    weight = tl.exp(best - tl.max(best, 0))
    there = (part < parts)[:, None] & inside[None, :]
    mean = tl.load(found + place[:, None] * width + at[None, :], there, 0)
    mean = tl.sum(mean * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + one * width + at, mean, inside)


def attention_step(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    parts: int | None = None,
) -> torch.Tensor:
    """Return attention of one new token a row over its `lengths` + 1 cached tokens.

    The tokens are divided into `parts`, each with a softmax of its own, which are then
    joined (flash-decoding): few rows and heads alone would use a small part of a GPU.
    Rows that are one row of a cache, expanded, read its keys and values once.
    """
    size, kv_heads, width = keys.shape[1:]
    heads, padded = q.shape[1] // width, triton.next_power_of_2(width)
    rows, shared = len(q), len(q) > 1 and not keys.stride(0)
    parts = parts or parts_for(heads if shared else rows * heads, size, q.device)
    out, sums, found = torch.empty_like(q), q, q
    if parts > 1:
        where = rows, heads, parts
        sums = q.new_empty(*where, 2, dtype=torch.float32)
        found = q.new_empty(*where, width, dtype=torch.float32)
    given = q, keys, values, lengths, sums, found, out
    sizes = heads, kv_heads, width, width**-0.5
    options = {"N": 32, "D": padded, "ALONE": parts == 1}
    if shared:
        options |= {"N": 16, "R": triton.next_power_of_2(rows)}
        _shared_part[heads, parts](*given, rows, *sizes, **options)
    else:
        _attention_part[rows, heads, parts](*given, keys.stride(0), *sizes, **options)
    if parts > 1:
        _join_parts[(rows * heads,)](
            sums, found, out, parts, width, P=MOST_PARTS, D=padded
        )
    return out


def parts_for(programs: int, size: int, device: torch.device) -> int:
    """Return into how many parts to divide the tokens of a cache of `size`.

    Each of `programs`, such as the rows and heads, then gives work to several
    multiprocessors of the GPU: four programs for each one, of 64 tokens or more.
    """
    if device.type != "cuda":
        return 1
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(MOST_PARTS, 4 * units // programs, size // 64))
