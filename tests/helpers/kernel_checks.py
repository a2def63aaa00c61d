"""Compare each Triton kernel with its PyTorch function, in Triton's interpreter.

The interpreter must be chosen before Triton is imported, so this is a program of its
own. `TRITON_INTERPRET=1 python kernel_checks.py` prints a JSON object: the name of each
check, and its traceback, or null where it passed.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import replace

import bitsandbytes.functional as bnb
import torch
from transformers import AutoConfig

from colab_utils import models
from colab_utils.fast import (
    attention,
    attention_kernels,
    kernels,
    loss_kernels,
    ops,
    warmup,
)
from colab_utils.shape import Shape


def assert_close(found, expected, rel=1e-6):
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < rel, error


def dequantize_nf4():
    for shape, dtype in (((96, 640), torch.float32), ((33, 64), torch.float16)):
        w = torch.randn(shape, dtype=dtype)
        packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
        out = torch.full(shape, float("nan"), dtype=dtype)
        kernels.dequantize_nf4(packed, state, out)
        expected = bnb.dequantize_4bit(packed, state)
        assert_close(out, expected, 1e-6 if dtype == torch.float32 else 1e-3)


def norm():
    x, w = torch.randn(5, 192) * 3, torch.randn(192)
    assert_close(kernels.norm(x, w, 1e-5), ops.norm(x, w, 1e-5))


def add_norm():
    x, y, w = torch.randn(5, 192) * 3, torch.randn(5, 192), torch.randn(192)
    a, b = x.clone(), x.clone()
    assert_close(kernels.add_norm(a, y, w, 1e-5), ops.add_norm(b, y, w, 1e-5))
    assert_close(a, b)


def norm_backward():
    x, w, residual = torch.randn(5, 192) * 3, torch.randn(192), torch.randn(5, 192)
    a, b = (torch.randn(5, 192, generator=torch.manual_seed(1)) for _ in range(2))
    found = kernels.norm_backward(a, x, w, residual, 1e-5)
    assert_close(found, ops.norm_backward(b, x, w, residual, 1e-5))
    assert_close(a, b)


def norm_heads():
    for heads, kept, width in ((6, 2, 24), (4, 1, 32)):
        x = torch.randn(7, (heads + 2 * kept) * width) * 3
        q, k = torch.randn(2, width)
        given = (x, q, k, kept, 1e-5)
        assert_close(kernels.norm_heads(*given), ops.norm_heads(*given))
        a = torch.randn_like(x)
        b = a.clone()
        kernels.norm_heads_backward(a, *given)
        ops.norm_heads_backward(b, *given)
        assert_close(a, b)


def rotate():
    for heads, kept in ((6, 3), (4, 1)):
        cos, sin = torch.randn(7, 24), torch.randn(7, 24)
        cos[:, 12:], sin[:, 12:] = cos[:, :12], sin[:, :12]
        for sign in (1, -1):
            a = torch.randn(7, (heads + kept) * 24)
            b = a.clone()
            kernels.rotate(a, cos, sin, heads, sign)
            ops.rotate(b, cos, sin, heads, sign)
            assert_close(a, b)


def cross_entropy():
    for vocabulary in (300, 9000):
        a = torch.randn(6, vocabulary) * 4
        targets = torch.randint(vocabulary, (6,))
        a[0, targets[0]] = a[0].max() + 1  # a hit
        a[1, 7] = a[1, 250] = a[1].max() + 1  # a tie: the first token is the top-1
        targets[1] = 7
        b = a.clone()
        losses, hits = loss_kernels.cross_entropy(a, targets)
        expected, wanted = ops.cross_entropy(b, targets)
        assert_close(losses, expected)
        assert_close(a, b)
        assert hits[:2].all() and torch.equal(hits, wanted)


def swiglu():
    gate, up = torch.randn(3, 2 * 1100).chunk(2, -1)
    assert_close(kernels.swiglu(gate, up), ops.swiglu(gate, up))


def swiglu_backward():
    a = torch.randn(3, 2 * 1100)
    b, grad = a.clone(), torch.randn(3, 1100)
    other = grad.clone()
    kernels.swiglu_backward(grad, a)
    ops.swiglu_backward(other, b)
    assert_close(a, b)
    assert_close(grad, other)


def step_on_a_cache():
    for heads, kept, width in ((6, 6, 32), (6, 2, 48), (3, 1, 20)):
        rows, size = 3, 70
        cos, sin = torch.randn(size, width), torch.randn(size, width)
        half = width // 2
        cos[:, half:], sin[:, half:] = cos[:, :half], sin[:, :half]
        lengths = torch.tensor([0, 41, 69], dtype=torch.int32)
        q = torch.randn(rows, heads * width)
        k, v = torch.randn(2, rows, kept * width)
        keys, values = torch.randn(2, rows, size, kept, width)
        found = []
        for backend in (attention_kernels, attention):
            given = [t.clone() for t in (q, k, v, cos, sin, keys, values)]
            backend.rotate_and_store(*given, lengths)
            q2, *_, keys2, values2 = given
            y = backend.attention_step(q2, keys2, values2, lengths)
            found.append((y, q2, keys2, values2))
        for ours, reference in zip(*found, strict=True):
            assert_close(ours, reference)


def all_kernels_of_a_model():
    demo = Shape.from_config(AutoConfig.from_pretrained(models.location("demo")))
    for shape in (demo, replace(demo, qk_norm=True)):
        warmup.compile_training(shape, torch.float32, "cpu")
        warmup.compile_decoding(shape, torch.float32, "cpu")


CHECKS = (
    *(dequantize_nf4, norm, add_norm, norm_backward, norm_heads, rotate, swiglu),
    *(cross_entropy, swiglu_backward, step_on_a_cache, all_kernels_of_a_model),
)


def main() -> None:
    found = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            check()
            found[check.__name__] = None
        except Exception:
            found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
