"""The machine code of our own, run by a small interpreter of PTX.

Triton's interpreter can't run it. `tests/fast/test_kernels.py` has the rest of the
kernel, and `tests/gpu` runs both on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this system")

from colab_utils.fast import vector_kernels


def prmt(a: int, b: int, selector: int) -> int:
    """Pick four of the eight bytes of b and a. PTX ISA, section "prmt"."""
    both, found = (b << 32) | a, 0
    for i in range(4):
        place = selector >> (4 * i) & 15
        assert place < 8, "bit 3 would copy a sign"
        found |= (both >> (8 * place) & 255) << (8 * i)
    return found


def halves(word: int) -> np.ndarray:
    return np.array([word], np.uint32).view(np.float16)


def word(numbers: np.ndarray) -> int:
    return int(numbers.astype(np.float16).view(np.uint32)[0])


def multiply(a: int, b: int, c: int = 0) -> int:
    """Return a b + c of two float16 numbers each, rounded once."""
    x, y, z = (halves(one).astype(np.float64) for one in (a, b, c))
    return word(x * y + z)


def lop3(a: int, b: int, c: int, table: int) -> int:
    assert table == 0xEA  # (0xF0 & 0xCC) | 0xAA
    return (a & b) | c


OPERATIONS: dict[str, Callable[..., int]] = {
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, n: a >> n,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "mul.f16x2": multiply,
    "fma.rn.f16x2": multiply,
}


def run(program: str, outputs: int, given: list[int]) -> list[int | np.float32]:
    """Return the first registers after a program, with `given` in the next ones.

    A register that is written must not be an input as well: a compiler could give both
    the same place.
    """
    held: dict[str, int] = {f"${i}": one for i, one in enumerate(given, outputs)}
    sums: dict[str, np.float32] = {}
    inputs_of = set(held)

    def value(name: str) -> int:
        return held[name] if name in held else int(name, 0)

    for line in re.sub(r"[{}]", "", program).split(";"):
        if not (line := line.strip()) or line.startswith(".reg"):
            continue
        name, _, rest = line.partition(" ")
        out, *inputs = (part.strip() for part in rest.split(","))
        assert out not in inputs_of
        if name == "mov.b32":  # {u, v}, t
            held[out], held[inputs[0]] = (
                int(half) for half in halves(held[inputs[1]]).view(np.uint16)
            )
        elif name == "cvt.f32.f16":
            sums[out] = np.float32(np.array([held[inputs[0]]], "u2").view("f2")[0])
        elif name == "add.f32":
            sums[out] = sums[inputs[0]] + sums[inputs[1]]
        else:
            held[out] = OPERATIONS[name](*map(value, inputs))
    return [(held | sums)[f"${i}"] for i in range(outputs)]


@pytest.fixture
def code() -> torch.Tensor:
    """Return the 16 numbers of NF4, as bitsandbytes has them."""
    return bnb.get_4bit_type("nf4", device="cpu")


def unsigned(words: torch.Tensor) -> list[int]:
    return [one & 0xFFFFFFFF for one in words.tolist()]


def products(packed: torch.Tensor, x: torch.Tensor, code: torch.Tensor) -> float:
    """Run the machine code on four bytes of weights and eight numbers x."""
    words = unsigned(packed.view(torch.int32)) + unsigned(vector_kernels.halves(code))
    pairs = run(vector_kernels.EIGHT_WEIGHTS.value, 4, words)
    given = [*pairs, *unsigned(x.view(torch.int32))]
    return float(run(vector_kernels.EIGHT_PRODUCTS.value, 1, given)[0])


def test_machine_code_finds_each_of_16_numbers_at_each_place(code):
    for place in range(8):
        x = torch.zeros(8, dtype=torch.float16)
        x[place] = 1
        for number in range(16):
            weights = torch.full((8,), (number + 5) % 16, dtype=torch.uint8)
            weights[place] = number
            packed = weights[::2] << 4 | weights[1::2]
            expected = code[number].half().item()
            assert products(packed, x, code) == expected, (place, number)


def test_machine_code_sums_products(code):
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        weights = torch.randint(16, (8,), generator=draw, dtype=torch.uint8)
        x = torch.randn(8, generator=draw).half()
        found = products(weights[::2] << 4 | weights[1::2], x, code)
        expected = (code[weights.long()].double() * x.double()).sum().item()
        # Two sums of four products, each rounded to float16 four times.
        assert found == pytest.approx(expected, abs=8 * 2**-11 * x.abs().sum().item())
