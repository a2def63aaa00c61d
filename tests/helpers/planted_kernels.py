"""Kernels with one mistake each, compiled for a T4: prints what is found in each."""

from __future__ import annotations

import json
from functools import partial

import torch
import triton
import triton.language as tl

from helpers.compile_for_75 import compile_only


@triton.jit
def through(x, N: tl.constexpr, KIND: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x + at, tl.load(x + at).to(KIND).to(tl.float16))


@triton.jit
def transpose(x, N: tl.constexpr):
    at = tl.arange(0, N * N)
    square = tl.reshape(tl.load(x + at), [N, N])
    tl.store(x + at, tl.reshape(tl.trans(square), [N * N]))


@triton.jit
def hold(x, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at).to(tl.float32)
    tl.store(x + at, value / tl.sum(value, 0))


@triton.jit
def assembly(x, CODE: tl.constexpr):
    at = tl.arange(0, 32)
    value = tl.load(x + at).to(tl.int32)
    value = tl.inline_asm_elementwise(CODE, "=r,r", [value], tl.int32, False, 1)
    tl.store(x + at, value.to(tl.float16))


COPY = "cp.async.wait_all; mov.b32 $0, $1;"
TENSOR_CORES = """{ .reg .f32 a, b, c, d; .reg .b32 r; mov.b32 r, $1;
mov.f32 a, 0f00000000; mov.f32 b, a; mov.f32 c, a; mov.f32 d, a;
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
{a, b, c, d}, {r, r, r, r}, {r, r}, {a, b, c, d}; mov.b32 $0, a; }"""


def main() -> None:
    half, single = torch.ones(2**16, dtype=torch.float16), torch.ones(64)
    launch = {
        "float8 that Triton emulates": partial(through[1,], half, 64, tl.float8e5),
        "float8 of newer GPUs": partial(through[1,], half, 64, tl.float8e4nv),
        "bfloat16": partial(through[1,], half, 64, tl.bfloat16),
        "float32 argument": partial(through[1,], single, 64, tl.float16),
        "shared memory": partial(transpose[1,], half, 256, num_warps=16),
        "spills": partial(hold[1,], half, 2**13, num_warps=1),
        "asynchronous copy": partial(assembly[1,], half, COPY),
        "tensor cores of newer GPUs": partial(assembly[1,], half, TENSOR_CORES),
        "no mistake": partial(through[1,], half, 64, tl.float32),
    }
    found = {name: compile_only(run)[0]["problems"] for name, run in launch.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
