"""Compare each Triton kernel with its PyTorch function.

    PYTHONPATH=.:tests TRITON_INTERPRET=1 python -m helpers.kernel_checks
    PYTHONPATH=.:tests python -m helpers.kernel_checks

The first line runs the kernels in Triton's interpreter: in float32, with small sizes.
The second runs them on a GPU: in float16, with the sizes of real models, compiled for a
T4. Both print a JSON object. It holds the traceback for each check and model, or null
where the kernel is right, and the names of the kernels that were compiled for a T4.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bitsandbytes.functional as bnb
import torch

from colab_utils.fast import (
    attention,
    attention_kernels,
    kernels,
    loss_kernels,
    ops,
    vector_kernels,
    warmup,
)
from colab_utils.shape import Shape
from helpers.compile_for_75 import on_this_gpu
from helpers.kernels import MODELS, shape

# Widths and heads that are powers of two, and others.
SMALL = {
    "6 heads": shape(192, 1100, 6, 6, 32, 300),
    "grouped heads": shape(192, 160, 6, 2, 48, 9000),
    "one group": shape(128, 256, 4, 1, 32, 256),
    "odd sizes": replace(shape(60, 130, 3, 1, 20, 70), qk_norm=True),
}


@dataclass
class Check:
    """The sizes and dtype that kernels get, where they run, and the tolerance."""

    shape: Shape
    tokens: int
    device: str
    dtype: torch.dtype
    rel: float

    def compare(
        self, kernel: Callable[..., Any], reference: Callable[..., Any], *given: Any
    ) -> Any:
        """Call both on the same numbers; compare what they return and overwrite.

        The reference runs on the CPU in float32. Returns the kernel's results.
        """
        given = [self.rounded(x) for x in given]
        ours = [on(x, self.device) for x in given]
        theirs = [on(x, "cpu", torch.float32) for x in given]
        found, expected = kernel(*ours), reference(*theirs)
        both = tensors([found, ours]), tensors([expected, theirs])
        for mine, other in zip(*both, strict=True):
            assert_close(mine, other, self.rel)
        return found

    def rounded(self, x: Any) -> Any:
        return x.to(self.dtype) if is_float(x) else x

    def rows(self, width: int) -> torch.Tensor:
        return torch.randn(self.tokens, width)

    def angles(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines as a rotary embedding lays them out."""
        angles = (torch.rand(tokens, self.shape.head_dim // 2) * 6).repeat(1, 2)
        return angles.cos(), angles.sin()


def is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def on(x: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of a tensor; the dtype is for floating-point numbers."""
    if not isinstance(x, torch.Tensor):
        return x
    return x.to(device, dtype if is_float(x) else None, copy=True)


def tensors(results: Any) -> list[torch.Tensor]:
    """Return all tensors in nested lists and tuples."""
    if isinstance(results, torch.Tensor):
        return [results]
    nested = results if isinstance(results, list | tuple) else []
    return [tensor for result in nested for tensor in tensors(result)]


def assert_close(found: torch.Tensor, expected: torch.Tensor, rel: float) -> None:
    found = found.cpu()
    if not is_float(found):
        assert torch.equal(found, expected)
        return
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < rel, error


def dequantize_nf4(check: Check) -> None:
    half = torch.float16, 1e-3
    for size, (dtype, rel) in (((96, 640), (check.dtype, check.rel)), ((33, 64), half)):
        w = torch.randn(size, dtype=dtype)
        packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
        expected = bnb.dequantize_4bit(packed, state)
        out = torch.full_like(expected, float("nan"), device=check.device)
        state.to(check.device)
        kernels.dequantize_nf4(packed.to(check.device), state, out)
        assert_close(out, expected, rel)


def few_rows(check: Check) -> None:
    """Queries, keys and values: with biases and ranks, and some without."""
    shape, device = check.shape, check.device
    inputs = max(64, shape.inner // 64 * 64)
    x, a = torch.randn(8, inputs).half(), torch.randn(12, inputs).half() / 16
    low, weights, expected = x.float() @ a.float().T, [], []
    for outputs, first, rank in (
        *((shape.queries, 0, 4), (shape.keys, 4, 8)),
        *((shape.keys, 0, 0), (33, 0, 0)),
    ):
        w, bias, b = (torch.randn(outputs, n).half() for n in (inputs, 1, rank))
        packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
        y = x.float() @ bnb.dequantize_4bit(packed, state).float().T
        y += low[:, first : first + rank] @ b.float().T
        expected.append(y + bias.float().T if rank else y)
        state.to(device)
        bias, b = (t.to(device) if rank else None for t in (bias, b))
        one = vector_kernels.Weight(packed.to(device), state, bias, b, first)
        weights.append(one)
    products = vector_kernels.FewRows(weights, a.to(device))
    for count in (1, 3, 8):
        some = x[:count].to(device)
        for plain in (True,) if device == "cpu" else (True, False):
            for found, y in zip(products(some, plain), expected, strict=True):
                assert_close(found, y[:count], 1e-3)


def norm(check: Check) -> None:
    x, weight = check.rows(check.shape.width) * 3, torch.randn(check.shape.width)
    check.compare(kernels.norm, ops.norm, x, weight, 1e-5)


def add_norm(check: Check) -> None:
    x, y = (check.rows(check.shape.width) for _ in range(2))
    weight = torch.randn(check.shape.width)
    check.compare(kernels.add_norm, ops.add_norm, x * 3, y, weight, 1e-5)


def norm_backward(check: Check) -> None:
    grad, x, residual = (check.rows(check.shape.width) for _ in range(3))
    given = grad, x * 3, torch.randn(check.shape.width), residual, 1e-5
    check.compare(kernels.norm_backward, ops.norm_backward, *given)


def norm_heads(check: Check) -> None:
    shape = check.shape
    grad, x = (check.rows(shape.queries + 2 * shape.keys) for _ in range(2))
    q, k = torch.randn(2, shape.head_dim)
    given = x * 3, q, k, shape.kv_heads, 1e-5
    check.compare(kernels.norm_heads, ops.norm_heads, *given)
    check.compare(kernels.norm_heads_backward, ops.norm_heads_backward, grad, *given)


def rotate(check: Check) -> None:
    shape = check.shape
    cos, sin = check.angles(check.tokens)
    for sign in (1, -1):
        x = check.rows(shape.queries + 2 * shape.keys)
        given = x, cos, sin, shape.heads + shape.kv_heads, sign
        check.compare(kernels.rotate, ops.rotate, *given)


def cross_entropy(check: Check) -> None:
    vocab = check.shape.vocab
    logits, targets = torch.randn(6, vocab) * 4, torch.randint(vocab, (6,))
    logits[0, targets[0]] = logits[0].max() + 1  # a hit
    # A tie: the first token is the top-1.
    logits[1, 7] = logits[1, vocab - 50] = logits[1].max() + 1
    targets[1] = 7
    both = loss_kernels.cross_entropy, ops.cross_entropy
    _, hits = check.compare(*both, logits, targets)
    assert hits[:2].all()


def swiglu(check: Check) -> None:
    def of(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda gate_up: module.swiglu(*gate_up.chunk(2, -1))

    check.compare(of(kernels), of(ops), check.rows(2 * check.shape.inner))


def swiglu_backward(check: Check) -> None:
    grad, gate_up = (check.rows(n * check.shape.inner) for n in (1, 2))
    check.compare(kernels.swiglu_backward, ops.swiglu_backward, grad, gate_up)


def step_on_a_cache(check: Check) -> None:
    def of(module: Any) -> Callable[..., tuple[torch.Tensor, ...]]:
        def step(q, k, v, cos, sin, *cache):
            # A kernel leaves k as it is; the reference may overwrite it.
            module.rotate_and_store(q, k.clone(), v, cos, sin, *cache)
            return module.attention_step(q, *cache)

        return step

    shape, rows, size = check.shape, 3, 80
    q = torch.randn(rows, shape.queries)
    k, v = torch.randn(2, rows, shape.keys)
    keys, values = torch.randn(2, rows, size, shape.kv_heads, shape.head_dim)
    lengths = torch.tensor([0, 41, 79], dtype=torch.int32)
    given = q, k, v, *check.angles(size), keys, values, lengths
    check.compare(of(attention_kernels), of(attention), *given)


def step_in_parts(check: Check) -> None:
    """More parts than some rows have blocks of 32 tokens; one row fills the cache."""
    shape, rows, size = check.shape, 4, 160
    q = torch.randn(rows, shape.queries)
    keys, values = torch.randn(2, rows, size, shape.kv_heads, shape.head_dim)
    lengths = torch.tensor([0, 31, 100, 159], dtype=torch.int32)
    # Many parts take the interpreter long: for them the last two rows are enough.
    for parts, first in ((1, 0), (2, 0), (3, 0), (32, 2)):
        step = functools.partial(attention_kernels.attention_step, parts=parts)
        given = (x[first:] for x in (q, keys, values, lengths))
        check.compare(step, attention.attention_step, *given)


def step_of_rows_that_share_a_cache(check: Check) -> None:
    def of(module, parts=()):
        def step(q, k, v, cos, sin, keys, values, lengths):
            cache = [x.expand(len(q), -1, -1, -1) for x in (keys, values)]
            module.rotate_and_store(q, k.clone(), v, cos, sin, *cache, lengths)
            return module.attention_step(q, *cache, lengths, *parts)

        return step

    shape, size = check.shape, 96
    keys, values = torch.randn(2, 1, size, shape.kv_heads, shape.head_dim)
    for rows, length in ((4, 29), (3, 93)):  # 29: a block of 32 ends within the rows
        q = torch.randn(rows, shape.queries)
        k, v = torch.randn(2, rows, shape.keys)
        lengths = torch.arange(rows, dtype=torch.int32) + length
        given = q, k, v, *check.angles(size), keys, values, lengths
        for parts in (1, 3):
            check.compare(of(attention_kernels, (parts,)), of(attention), *given)


def all_kernels_of_a_model(check: Check) -> None:
    warmup.compile_training(check.shape, check.dtype, check.device)
    warmup.compile_decoding(check.shape, check.dtype, check.device)


CHECKS = (
    *(
        dequantize_nf4,
        few_rows,
        norm,
        add_norm,
        norm_backward,
        norm_heads,
        rotate,
        swiglu,
    ),
    *(
        cross_entropy,
        swiglu_backward,
        step_on_a_cache,
        step_in_parts,
        step_of_rows_that_share_a_cache,
        all_kernels_of_a_model,
    ),
)


def attempt(function: Callable[[Check], None], check: Check) -> str | None:
    """Return the traceback of a check that fails, else None."""
    torch.manual_seed(0)
    try:
        function(check)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    if os.environ.get("TRITON_INTERPRET"):
        shapes, settings = SMALL, (7, "cpu", torch.float32, 1e-6)
        code = contextlib.nullcontext(set())
    else:
        shapes, settings = MODELS, (517, "cuda", torch.float16, 1e-3)
        code = on_this_gpu()
    with code as loaded:
        found = {
            function.__name__: {
                name: attempt(function, Check(shape, *settings))
                for name, shape in shapes.items()
            }
            for function in CHECKS
        }
    print(json.dumps({"checks": found, "loaded": sorted(loaded)}))


if __name__ == "__main__":
    main()
