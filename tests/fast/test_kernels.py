"""The GPU kernels, in Triton's interpreter, compute what `ops` computes in torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no build for this system")

# The interpreter must be chosen before Triton is imported: each test is a program.
START = """
import torch
from colab_utils.fast import warmup as compiling
from colab_utils.fast import ops
from colab_utils.fast import kernels as triton_ops
torch.manual_seed(0)
def close(found, expected, rel=1e-6):
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < rel, error
"""

PROGRAMS = {
    "nf4": """
import bitsandbytes.functional as bnb
for shape, dtype in (((96, 640), torch.float32), ((33, 64), torch.float16)):
    w = torch.randn(shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    out = torch.full(shape, float("nan"), dtype=dtype)
    triton_ops.nf4(packed, state, out)
    expected = bnb.dequantize_4bit(packed, state)
    close(out, expected, 1e-6 if dtype == torch.float32 else 1e-3)
""",
    "norm": """
x, w = torch.randn(5, 192) * 3, torch.randn(192)
close(triton_ops.norm(x, w, 1e-5), ops.norm(x, w, 1e-5))
""",
    "add and norm": """
x, y, w = torch.randn(5, 192) * 3, torch.randn(5, 192), torch.randn(192)
a, b = x.clone(), x.clone()
close(triton_ops.add_norm(a, y, w, 1e-5), ops.add_norm(b, y, w, 1e-5))
close(a, b)
""",
    "a step on a cache": """
for heads, kept, width in ((6, 6, 32), (6, 2, 48), (3, 1, 20)):
    rows, size = 3, 70
    cos, sin = torch.randn(size, width), torch.randn(size, width)
    cos[:, width // 2:], sin[:, width // 2:] = cos[:, :width // 2], sin[:, :width // 2]
    lengths = torch.tensor([0, 41, 69], dtype=torch.int32)
    q = torch.randn(rows, heads * width)
    k, v = torch.randn(2, rows, kept * width)
    keys, values = torch.randn(2, rows, size, kept, width)
    found = []
    for kind in (triton_ops, ops):
        given = [t.clone() for t in (q, k, v, cos, sin, keys, values)]
        kind.rotate_and_store(*given, lengths)
        q2, *_, keys2, values2 = given
        y = kind.attention_step(q2, keys2, values2, lengths)
        found.append((y, q2, keys2, values2))
    for ours, theirs in zip(*found):
        close(ours, theirs)
""",
    "norm backward": """
x, w, residual = torch.randn(5, 192) * 3, torch.randn(192), torch.randn(5, 192)
a, b = (torch.randn(5, 192, generator=torch.manual_seed(1)) for _ in range(2))
found = triton_ops.norm_backward(a, x, w, residual, 1e-5)
close(found, ops.norm_backward(b, x, w, residual, 1e-5))
close(a, b)
""",
    "rotate": """
for heads, kept in ((6, 3), (4, 1)):
    cos, sin = torch.randn(7, 24), torch.randn(7, 24)
    cos[:, 12:], sin[:, 12:] = cos[:, :12], sin[:, :12]
    for sign in (1, -1):
        a = torch.randn(7, (heads + kept) * 24)
        b = a.clone()
        triton_ops.rotate(a, cos, sin, heads, sign)
        ops.rotate(b, cos, sin, heads, sign)
        close(a, b)
""",
    "all of them for a model": """
from transformers import AutoConfig
from colab_utils import models
config = AutoConfig.from_pretrained(models.location("demo"))
compiling.for_training(config, torch.float32, "cpu")
compiling.for_decoding(config, torch.float32, "cpu")
""",
    "swiglu": """
gate, up = torch.randn(3, 2 * 1100).chunk(2, -1)
close(triton_ops.swiglu(gate, up), ops.swiglu(gate, up))
""",
    "swiglu backward": """
a = torch.randn(3, 2 * 1100)
b, grad = a.clone(), torch.randn(3, 1100)
other = grad.clone()
triton_ops.swiglu_backward(grad, a)
ops.swiglu_backward(other, b)
close(a, b)
close(grad, other)
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_kernel_computes_what_torch_does(program):
    result = subprocess.run(
        [sys.executable, "-c", START + program],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
