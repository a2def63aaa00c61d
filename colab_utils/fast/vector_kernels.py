"""The products of a few tokens with 4-bit weights, in Triton (compute capability 7.5+).

With few rows of x, the time of a product is that of reading the weights and of
unpacking them. So this unpacks eight weights with 21 instructions, and all weights that
share an input are one launch, together with their biases and LoRA.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

ROWS, BLOCKS = 8, 16  # outputs of a program, and blocks of 64 weights that it reads

# PTX for four NF4 weights in float16, two in each of two registers. The code of 16
# float16 numbers is in $5 to $8 (the low bytes) and $9 to $12 (the high bytes). `prmt`
# picks four of eight bytes by three bits each, which are in s: one pick for the first
# half of a code, one for its second, and the fourth bits, in c, pick between both. A
# byte holds its first weight in the higher four bits.
FOUR_WEIGHTS = """prmt.b32 a, $5, $6, s;
prmt.b32 b, $7, $8, s;
prmt.b32 l, a, b, c;
prmt.b32 a, $9, $10, s;
prmt.b32 b, $11, $12, s;
prmt.b32 h, a, b, c;
prmt.b32 {0}, l, h, 0x4051;
prmt.b32 {1}, l, h, 0x6273;
"""
# PTX for the eight weights of the word $4, in $0 to $3.
EIGHT_WEIGHTS = tl.constexpr(f"""{{
.reg .b32 s, c, a, b, l, h;
and.b32 s, $4, 0x77777777;
shr.u32 c, $4, 1;
lop3.b32 c, c, 0x44444444, 0x32103210, 0xEA;
{FOUR_WEIGHTS.format("$0", "$1")}shr.u32 s, s, 16;
shr.u32 c, c, 16;
{FOUR_WEIGHTS.format("$2", "$3")}}}""")
FOUR_OUT = tl.constexpr(",".join(["=&r"] * 4 + ["r"] * 9))
# The sum $0 of the products of the weights in $1 to $4 with eight numbers in $5 to $8.
# Sums of four products are float16: their error is below that of the code in float16.
EIGHT_PRODUCTS = tl.constexpr("""{
.reg .b32 t; .reg .b16 u, v; .reg .f32 f, g;
mul.f16x2 t, $1, $5;
fma.rn.f16x2 t, $2, $6, t;
fma.rn.f16x2 t, $3, $7, t;
fma.rn.f16x2 t, $4, $8, t;
mov.b32 {u, v}, t;
cvt.f32.f16 f, u;
cvt.f32.f16 g, v;
add.f32 $0, f, g;
}""")
ONE_OUT = tl.constexpr(",".join(["=r"] + ["r"] * 8))


@triton.jit(do_not_specialize=["blocks"])
def _few_rows(
    x, table, code, halves, low, out, tokens, blocks, ranks,
    M: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    ASM: tl.constexpr,
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
    token, pair = tl.arange(0, M), tl.arange(0, G * 32)
    there = inside[:, None] & (group < blocks)[None, :]
    block = row[:, None] * blocks + group[None, :]
    at = block[:, :, None] * 8 + word[None, None, :]
    next_words = tl.load(packed + at, there[:, :, None], 0)
    next_scales = tl.load(absmax + block, there, 0).to(tl.int32)
    next_scales2 = tl.load(absmax2 + block // 256, there, 0)
    # For one token, sums over the words at once take 6 % less time.
    total = tl.zeros((N, G) if M == 1 else (N, M, G, 8), tl.float32)
    for start in range(0, blocks, G):
        words, scales, scales2 = next_words, next_scales, next_scales2
        # The next blocks are read while these are computed.
        there = inside[:, None] & (start + G + group < blocks)[None, :]
        block = row[:, None] * blocks + (start + G + group)[None, :]
        at = block[:, :, None] * 8 + word[None, None, :]
        next_words = tl.load(packed + at, there[:, :, None], 0)
        next_scales = tl.load(absmax + block, there, 0).to(tl.int32)
        next_scales2 = tl.load(absmax2 + block // 256, there, 0)
        place = start * 32 + pair
        some = (token < tokens)[:, None] & (place < blocks * 32)[None, :]
        pairs = tl.load(x + token[:, None] * blocks * 32 + place[None, :], some, 0)
        if ASM:
            w0, w1, w2, w3 = tl.inline_asm_elementwise(
                EIGHT_WEIGHTS,
                FOUR_OUT,
                [words, l0, l1, l2, l3, h0, h1, h2, h3],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
            if M == 1:
                pairs = tl.reshape(pairs, (G, 8, 2, 2))
            else:
                w0, w1, w2, w3 = w0[:, None], w1[:, None], w2[:, None], w3[:, None]
                pairs = tl.reshape(pairs, (M, G, 8, 2, 2))
            even, odd = tl.split(pairs)
            x0, x2 = tl.split(even)
            x1, x3 = tl.split(odd)
            found = tl.inline_asm_elementwise(
                EIGHT_PRODUCTS,
                ONE_OUT,
                [w0, w1, w2, w3, x0[None], x1[None], x2[None], x3[None]],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )
        else:
            pairs = tl.reshape(pairs, (1, M, G, 8, 4))
            first = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
            second = (pairs >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
            shift = (8 * tl.arange(0, 4))[None, None, None, :]
            bytes = (words[:, :, :, None] >> shift)[:, None]
            high, lower = (bytes >> 4) & 15, bytes & 15
            found = tl.load(code + high) * first + tl.load(code + lower) * second
            found = tl.reshape(tl.sum(found, 4), (N, G, 8) if M == 1 else (N, M, G, 8))
        scale = tl.load(code2 + scales) * scales2 + offset
        if M == 1:
            total += tl.sum(found, 2) * scale
        else:
            total += found * scale[:, None, :, None]
    y = tl.sum(total, 1)[:, None] if M == 1 else tl.sum(tl.sum(total, 3), 2)
    where = tl.load(mine + 5)
    if where != 0:
        bias = where.to(tl.pointer_type(out.dtype.element_ty))
        y += tl.load(bias + row, inside, 0).to(tl.float32)[:, None]
    if R:
        b = tl.load(mine + 6).to(tl.pointer_type(out.dtype.element_ty))
        first_rank, rank = tl.load(mine + 7), tl.load(mine + 8).to(tl.int32)
        one = tl.arange(0, R)
        some = (token < tokens)[:, None] & (one < rank)[None, :]
        few = tl.load(low + token[:, None] * ranks + first_rank + one[None, :], some, 0)
        there = inside[:, None] & (one < rank)[None, :]
        rows = tl.load(b + row[:, None] * rank + one[None, :], there, 0)
        y += tl.sum(rows.to(tl.float32)[:, None] * few[None], 2)
    to = out + tl.load(mine + 9) * tokens + token[None, :] * outputs + row[:, None]
    tl.store(to, y, inside[:, None] & (token < tokens)[None, :])


@triton.jit
def _low(x, a, low, width, N: tl.constexpr):
    one, token = tl.program_id(0), tl.program_id(1)
    total = tl.zeros((N,), tl.float32)
    for start in range(0, width, N):
        at = start + tl.arange(0, N)
        some = tl.load(x + token * width + at, at < width, 0).to(tl.float32)
        total += some * tl.load(a + one * width + at, at < width, 0).to(tl.float32)
    tl.store(low + token * tl.num_programs(0) + one, tl.sum(total, 0))


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


class FewRows:
    """The products of up to MOST rows x, in float16, with several weights.

    They are W x + bias + B A x. `a` (ranks, inputs) holds the A of all weights. The
    kernel reads all tensors where they are now: like a recorded step, this must not
    outlive a move of them.
    """

    MOST = 8

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
        """Return the output (T, outputs) for each weight, of x (T, inputs).

        `plain` computes without machine code of our own.
        """
        tokens, ranks = len(x), len(self.a)
        out = x.new_empty(tokens * sum(self.outputs))
        low = x.new_empty(tokens, max(ranks, 1), dtype=torch.float32)
        if ranks:
            _low[ranks, tokens](x, self.a, low, self.inputs, N=4096, num_warps=8)
        _few_rows[triton.cdiv(max(self.outputs), ROWS), len(self.outputs)](
            x.view(torch.int32),
            self.table,
            self.code,
            self.halves,
            low,
            out,
            tokens,
            self.inputs // 64,
            ranks,
            M=triton.next_power_of_2(tokens),
            N=ROWS,
            G=BLOCKS,
            R=self.rank,
            ASM=not plain,
            num_warps=2 if tokens == 1 else 4,
        )
        parts = out.split([tokens * outputs for outputs in self.outputs])
        return [part.view(tokens, -1) for part in parts]


def _line(weight: Weight, row: int) -> list[int]:
    """Return the line of a weight in the table that `_few_rows` reads."""
    state, bias, b = weight.state, weight.bias, weight.b
    tensors = weight.packed, state.absmax, state.state2.absmax, state.state2.code
    line = [tensor.data_ptr() for tensor in (*tensors, state.offset)]
    line += [0 if one is None else one.data_ptr() for one in (bias, b)]
    rank = 0 if b is None else b.shape[1]
    return [*line, weight.first, rank, row, state.shape[0]]
