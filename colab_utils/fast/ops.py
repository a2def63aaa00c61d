"""The element-wise operations of a Llama layer and their gradients, in PyTorch.

Rows are tokens: documents stand one after another, without padding. On a GPU each
function calls its Triton kernel; the PyTorch code here runs everywhere else, and the
tests compare the kernels with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
Operation = Callable[Concatenate[torch.Tensor, P], R]


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed; it compiles the kernels (not on Windows)."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_module(name: str) -> ModuleType:
    """Return a module of kernels; importing it needs Triton."""
    return importlib.import_module(f"colab_utils.fast.{name}")


def on_gpu(module: str) -> Callable[[Operation[P, R]], Operation[P, R]]:
    """Replace a function by the one of the same name in `module` for tensors on a GPU.

    The device of the first argument decides.
    """

    def decorate(reference: Operation[P, R]) -> Operation[P, R]:
        name = reference.__name__

        @functools.wraps(reference)
        def dispatch(x: torch.Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if x.is_cuda and has_triton():
                return getattr(triton_module(module), name)(x, *args, **kwargs)
            return reference(x, *args, **kwargs)

        return dispatch

    return decorate


def _float32(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32 or float64: the square of 300 overflows float16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_usual_nf4(weight: torch.Tensor) -> bool:
    """Return whether a weight is in the format that the Triton kernels read.

    It is that of `models.quantization_config`: NF4 in blocks of 64, with double
    quantization.
    """
    state: Any = getattr(weight, "quant_state", None)
    if state is None or not state.nested or weight.dtype != torch.uint8:
        return False
    blocks = state.blocksize, state.state2.blocksize
    return state.quant_type == "nf4" and blocks == (64, 256)


def dequantize(weight: torch.Tensor, out: torch.Tensor) -> None:
    """Write a weight that bitsandbytes quantized into `out` (outputs, inputs)."""
    state: Any = getattr(weight, "quant_state")  # noqa: B009 (mypy can't know it)
    if not weight.numel():  # a kernel would leave `out` as it is
        raise RuntimeError("The weight is sharded, and its layer was not gathered.")
    if is_usual_nf4(weight) and out.is_cuda and has_triton():
        triton_module("kernels").dequantize_nf4(weight, state, out)
        return
    import bitsandbytes.functional as bnb

    out.copy_(bnb.dequantize_4bit(weight.data, state))


@on_gpu("kernels")
def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return RMSNorm of rows (T, width). Zhang and Sennrich 2019."""
    y = _float32(x)
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * scale * weight).to(x.dtype)


@on_gpu("kernels")
def add_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add rows y (T, width) to x in place, and return RMSNorm of the sum."""
    return norm(x.add_(y), weight, eps)


@on_gpu("kernels")
def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Return the gradient of x plus `residual`; write the norm's output into `grad`."""
    y = _float32(x)
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    normal, g = y * scale, _float32(grad) * weight
    out = scale * (g - normal * (g * normal).mean(-1, keepdim=True)) + residual
    grad.copy_(normal * weight)
    return out.to(x.dtype)


@on_gpu("kernels")
def norm_heads(
    x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, kv_heads: int, eps: float
) -> torch.Tensor:
    """Return x (T, (heads + 2 kv_heads) x D) with RMSNorm in each query and key head.

    `q` and `k` (D,) are the weights of the two norms; the values stay.
    """
    parts = x.view(len(x), -1, len(q))
    heads = parts.shape[1] - 2 * kv_heads
    queries, keys, values = parts.split([heads, kv_heads, kv_heads], dim=1)
    normal = norm(queries, q, eps), norm(keys, k, eps)
    return torch.cat([*normal, values], dim=1).view_as(x)


@on_gpu("kernels")
def norm_heads_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    kv_heads: int,
    eps: float,
) -> None:
    """Overwrite `grad`, the gradient of `norm_heads`, with that of its input x."""
    parts, grads = (t.view(len(x), -1, len(q)) for t in (x, grad))
    heads = parts.shape[1] - 2 * kv_heads
    for rows, weight in ((slice(heads), q), (slice(heads, heads + kv_heads), k)):
        g = grads[:, rows]
        # `norm_backward` overwrites its first argument.
        g.copy_(norm_backward(g.clone(), parts[:, rows], weight, g.new_zeros(1), eps))


@on_gpu("kernels")
def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, sign: float = 1
) -> None:
    """Rotate the first `heads` heads of x (T, heads and more x D) in place.

    `sign` -1 rotates back. Rotary position embedding as transformers lays it out: the
    two halves of a head are the two coordinates. Su et al. 2021.
    """
    size = cos.shape[-1]
    turned = x[:, : heads * size].view(len(x), heads, size)
    a, b = turned.clone().chunk(2, dim=-1)
    c, s = cos[:, None, : size // 2], sin[:, None, : size // 2] * sign
    turned.copy_(torch.cat([a * c - b * s, b * c + a * s], dim=-1))


@on_gpu("loss_kernels")
def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's loss, and whether its top-1 token is the target (rows,).

    `logits` (rows, vocabulary) is overwritten with the gradient of the sum of losses.
    """
    scores, place = _float32(logits), targets[:, None]
    largest, top_1 = scores.max(-1, keepdim=True)
    scores -= largest
    losses = -scores.gather(1, place)
    exponents = scores.exp_().sum(-1, keepdim=True)
    losses += exponents.log()
    scores /= exponents
    scores.scatter_add_(1, place, -torch.ones_like(losses))
    if scores is not logits:
        logits.copy_(scores)
    return losses[:, 0], (top_1 == place)[:, 0]


@on_gpu("kernels")
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up of rows (T, width). Shazeer 2020."""
    return (torch.nn.functional.silu(_float32(gate)) * up).to(gate.dtype)


@on_gpu("kernels")
def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Overwrite `gate_up` (T, 2 x width) with its gradient, and `grad` with swiglu."""
    parts = gate_up.chunk(2, dim=-1)
    gate, up, g = (_float32(t) for t in (*parts, grad))
    s = torch.sigmoid(gate)
    silu = gate * s
    d_gate, d_up = g * up * (s + silu * (1 - s)), g * silu
    grad.copy_(silu * up)
    parts[0].copy_(d_gate)
    parts[1].copy_(d_up)
