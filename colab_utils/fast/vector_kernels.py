"""The products of one token with 4-bit weights, in Triton (compute capability 7.5+).

A token needs one row of x, and then the time of a product is that of reading the
weights and of unpacking them. So this unpacks eight weights with 21 instructions, and
all weights that share an input are one launch, together with their biases and LoRA.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

# The outputs of a program, the blocks of 64 weights that it reads at a time, its warps.
# The fastest of eleven triples on an H100 (bench/LOG.md).
ROWS, BLOCKS, WARPS = 8, 16, 2

# PTX for one word with eight NF4 weights: $0 is the sum of their products with x in
# $10 to $13, two float16 numbers each. The code of 16 float16 numbers is in $2 to $5
# (the low bytes) and $6 to $9 (the high bytes). `prmt` picks four of eight bytes by
# three bits each: one pick for a code's first half, one for its second, and the fourth
# bits pick between both. A byte holds its first weight in the higher four bits. Sums of
# four products are float16: their error is below that of the code in float16.
EIGHT_PRODUCTS = tl.constexpr("""{
.reg .b32 s, c, a, b, l, h, p, t; .reg .b16 u, v; .reg .f32 f, g;
and.b32 s, $1, 0x77777777;
shr.u32 c, $1, 1;
lop3.b32 c, c, 0x44444444, 0x32103210, 0xEA;
prmt.b32 a, $2, $3, s;
prmt.b32 b, $4, $5, s;
prmt.b32 l, a, b, c;
prmt.b32 a, $6, $7, s;
prmt.b32 b, $8, $9, s;
prmt.b32 h, a, b, c;
prmt.b32 p, l, h, 0x4051;
mul.f16x2 t, p, $10;
prmt.b32 p, l, h, 0x6273;
fma.rn.f16x2 t, p, $11, t;
shr.u32 s, s, 16;
shr.u32 c, c, 16;
prmt.b32 a, $2, $3, s;
prmt.b32 b, $4, $5, s;
prmt.b32 l, a, b, c;
prmt.b32 a, $6, $7, s;
prmt.b32 b, $8, $9, s;
prmt.b32 h, a, b, c;
prmt.b32 p, l, h, 0x4051;
fma.rn.f16x2 t, p, $12, t;
prmt.b32 p, l, h, 0x6273;
fma.rn.f16x2 t, p, $13, t;
mov.b32 {u, v}, t;
cvt.f32.f16 f, u;
cvt.f32.f16 g, v;
add.f32 $0, f, g;
}""")
REGISTERS = tl.constexpr("=r" + ",r" * 13)


@triton.jit(do_not_specialize=["blocks"])
def _one_row(
    x, table, code, halves, low, out, blocks,
    N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    mine = table + tl.program_id(1) * 11
    outputs = tl.load(mine + 10).to(tl.int32)
    if tl.program_id(0) * N >= outputs:
        return
    packed = tl.multiple_of(tl.load(mine).to(tl.pointer_type(tl.int32)), 16)
    absmax = tl.load(mine + 1).to(tl.pointer_type(tl.uint8))
    absmax2 = tl.load(mine + 2).to(tl.pointer_type(tl.float32))
    code2 = tl.load(mine + 3).to(tl.pointer_type(tl.float32))
    offset = tl.load(tl.load(mine + 4).to(tl.pointer_type(tl.float32)))
    l0, l1 = tl.load(halves), tl.load(halves + 1)
    l2, l3 = tl.load(halves + 2), tl.load(halves + 3)
    h0, h1 = tl.load(halves + 4), tl.load(halves + 5)
    h2, h3 = tl.load(halves + 6), tl.load(halves + 7)
    row = tl.program_id(0) * N + tl.arange(0, N)
    inside, group, word = row < outputs, tl.arange(0, G), tl.arange(0, 8)
    there = inside[:, None] & (group < blocks)[None, :]
    block = row[:, None] * blocks + group[None, :]
    at = block[:, :, None] * 8 + word[None, None, :]
    next_words = tl.load(packed + at, there[:, :, None], 0)
    next_scales = tl.load(absmax + block, there, 0).to(tl.int32)
    next_scales2 = tl.load(absmax2 + block // 256, there, 0)
    total = tl.zeros((N, G), tl.float32)
    for start in range(0, blocks, G):
        words, scales, scales2 = next_words, next_scales, next_scales2
        # The next blocks are read while these are computed.
        there = inside[:, None] & (start + G + group < blocks)[None, :]
        block = row[:, None] * blocks + (start + G + group)[None, :]
        at = block[:, :, None] * 8 + word[None, None, :]
        next_words = tl.load(packed + at, there[:, :, None], 0)
        next_scales = tl.load(absmax + block, there, 0).to(tl.int32)
        next_scales2 = tl.load(absmax2 + block // 256, there, 0)
        pair = start * 32 + tl.arange(0, G * 32)
        pairs = tl.load(x + pair, pair < blocks * 32, 0)
        if ASM:
            even, odd = tl.split(tl.reshape(pairs, (G, 8, 2, 2)))
            x0, x2 = tl.split(even)
            x1, x3 = tl.split(odd)
            x0, x1, x2, x3 = x0[None], x1[None], x2[None], x3[None]
            found = tl.inline_asm_elementwise(
                EIGHT_PRODUCTS,
                REGISTERS,
                [words, l0, l1, l2, l3, h0, h1, h2, h3, x0, x1, x2, x3],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )
        else:
            pairs = tl.reshape(pairs, (1, G, 8, 4))
            first = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
            second = (pairs >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
            bytes = words[:, :, :, None] >> (8 * tl.arange(0, 4))[None, None, None, :]
            high, lower = (bytes >> 4) & 15, bytes & 15
            found = tl.load(code + high) * first + tl.load(code + lower) * second
            found = tl.sum(found, 3)
        scale = tl.load(code2 + scales) * scales2 + offset
        total += tl.sum(found, 2) * scale
    y = tl.sum(total, 1)
    where = tl.load(mine + 5)
    if where != 0:
        bias = where.to(tl.pointer_type(out.dtype.element_ty))
        y += tl.load(bias + row, inside, 0).to(tl.float32)
    if R:
        b = tl.load(mine + 6).to(tl.pointer_type(out.dtype.element_ty))
        first_rank, rank = tl.load(mine + 7), tl.load(mine + 8).to(tl.int32)
        one = tl.arange(0, R)
        some = tl.load(low + first_rank + one, one < rank, 0)
        there = inside[:, None] & (one < rank)[None, :]
        rows = tl.load(b + row[:, None] * rank + one[None, :], there, 0)
        y += tl.sum(rows.to(tl.float32) * some[None, :], 1)
    tl.store(out + tl.load(mine + 9) + row, y, inside)


@triton.jit
def _low(x, a, low, width, N: tl.constexpr):
    one = tl.program_id(0)
    total = tl.zeros((N,), tl.float32)
    for start in range(0, width, N):
        at = start + tl.arange(0, N)
        some = tl.load(x + at, at < width, 0).to(tl.float32)
        total += some * tl.load(a + one * width + at, at < width, 0).to(tl.float32)
    tl.store(low + one, tl.sum(total, 0))


def halves(code: torch.Tensor) -> torch.Tensor:
    """Return the low bytes, then the high bytes, of 16 numbers in float16 (8 words)."""
    both = code.to(torch.float16).view(torch.uint8).view(16, 2)
    return both.T.contiguous().view(torch.int32).flatten()


class Weight(NamedTuple):
    """A weight in 4 bits, and what is added to its product with x.

    `state` is bitsandbytes' `quant_state`; `ops.is_usual_nf4` is true of the weight. B
    (outputs, rank) belongs to the rows of A from `first` on.
    """

    packed: torch.Tensor
    state: Any
    bias: torch.Tensor | None = None
    b: torch.Tensor | None = None
    first: int = 0


class OneRow:
    """The products of one row x, in float16, with several weights: W x + bias + B A x.

    `a` (ranks, inputs) holds the A of all weights. The kernel reads all tensors where
    they are now: like a recorded step, this must not outlive a move of them.
    """

    def __init__(self, weights: list[Weight], a: torch.Tensor) -> None:
        self.weights, self.a = weights, a
        self.code = weights[0].state.code
        self.halves = halves(self.code)
        self.outputs = [weight.state.shape[0] for weight in weights]
        self.inputs = weights[0].state.shape[1]
        rows = [0, *itertools.accumulate(self.outputs)]
        lines = [_line(*pair) for pair in zip(weights, rows, strict=False)]
        self.table = torch.tensor(lines, device=a.device)
        rank = max(line[8] for line in lines)
        self.rank = triton.next_power_of_2(rank) if rank else 0

    def __call__(self, x: torch.Tensor, plain: bool = False) -> list[torch.Tensor]:
        """Return the output (1, outputs) for each weight, of x (1, inputs).

        `plain` computes without machine code of our own.
        """
        ranks = len(self.a)
        out = x.new_empty(1, sum(self.outputs))
        low = x.new_empty(max(ranks, 1), dtype=torch.float32)
        if ranks:
            _low[(ranks,)](x, self.a, low, self.inputs, N=4096, num_warps=8)
        _one_row[triton.cdiv(max(self.outputs), ROWS), len(self.outputs)](
            x.view(torch.int32),
            self.table,
            self.code,
            self.halves,
            low,
            out,
            self.inputs // 64,
            N=ROWS,
            G=BLOCKS,
            R=self.rank,
            ASM=not plain,
            num_warps=WARPS,
        )
        return list(out.split(self.outputs, 1))


def _line(weight: Weight, row: int) -> list[int]:
    """Return the line of a weight in the table that `_one_row` reads."""
    state, bias, b = weight.state, weight.bias, weight.b
    tensors = weight.packed, state.absmax, state.state2.absmax, state.state2.code
    line = [tensor.data_ptr() for tensor in (*tensors, state.offset)]
    line += [0 if one is None else one.data_ptr() for one in (bias, b)]
    rank = 0 if b is None else b.shape[1]
    return [*line, weight.first, rank, row, state.shape[0]]
