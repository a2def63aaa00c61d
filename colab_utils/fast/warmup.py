"""Compile the GPU kernels in the background, while a model is loaded."""

from __future__ import annotations

import functools
import itertools
import threading
from typing import TYPE_CHECKING, Any

from colab_utils import families
from colab_utils.shape import Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


class Warmup(threading.Thread):
    """A thread that compiles the kernels of decoding, or those of training.

    No decoding step may be recorded while a kernel compiles anywhere in this process,
    even for another model. `wait_for_all` therefore waits for every warm-up in Python's
    list of running threads.
    """

    def __init__(
        self, config: PreTrainedConfig, dtype: torch.dtype, training: bool
    ) -> None:
        super().__init__(name="compile the kernels of the fast path")
        self.config, self.dtype, self.training = config, dtype, training

    def run(self) -> None:
        """Compile; the thread calls this."""
        compile_kernels = compile_training if self.training else compile_decoding
        compile_kernels(Shape.from_config(self.config), self.dtype)


def prepare(
    config: PreTrainedConfig, dtype: torch.dtype, training: bool = False
) -> Warmup | None:
    """Begin to compile the kernels of decoding, or those of training if `training`.

    Returns None without a GPU or without Triton, and for a model that the fast path
    does not know: then there is nothing to compile.
    """
    import torch

    from colab_utils.fast import ops

    known = config.model_type in families.FAMILIES
    if not known or not torch.cuda.is_available() or not ops.has_triton():
        return None
    warmup = Warmup(config, dtype, training)
    warmup.start()
    return warmup


def wait_for_all() -> None:
    """Wait until every warm-up of this process has ended."""
    for thread in threading.enumerate():
        if isinstance(thread, Warmup) and thread.is_alive():
            thread.join()


def compile_training(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> None:
    """Run each kernel of training once on one token, so that it is compiled.

    Triton compiles a kernel for each dtype, and separately for sizes that are multiples
    of 16.
    """
    import torch

    from colab_utils.fast import kernels, loss_kernels

    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    x, weight = ones(1, shape.width), ones(shape.width)
    n = kernels.norm(x, weight, shape.norm_eps)
    kernels.norm_backward(n, x, weight, x, shape.norm_eps)
    qkv, angles = ones(1, shape.queries + 2 * shape.keys), ones(1, shape.head_dim)
    kernels.rotate(qkv, angles, angles, shape.heads + shape.kv_heads)
    if shape.qk_norm:
        q = k = ones(shape.head_dim)
        kernels.norm_heads(qkv, q, k, shape.kv_heads, shape.norm_eps)
        kernels.norm_heads_backward(qkv, qkv, q, k, shape.kv_heads, shape.norm_eps)
    gate_up = ones(1, 2 * shape.inner)
    kernels.swiglu_backward(kernels.swiglu(*gate_up.chunk(2, -1)), gate_up)
    loss_kernels.cross_entropy(
        ones(1, shape.vocab), torch.zeros(1, dtype=torch.long, device=device)
    )
    _compile_nf4(dtype, device)


def compile_decoding(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> None:
    """Run each kernel of decoding once; a cache always has a multiple of 16 tokens."""
    import torch

    from colab_utils.fast import attention_kernels, kernels, vector_kernels
    from colab_utils.fast.decoding_linears import READ

    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    x, weight = ones(1, shape.width), ones(shape.width)
    n = kernels.norm(x, weight, shape.norm_eps)
    kernels.add_norm(x, n, weight, shape.norm_eps)
    qkv, angles = ones(1, shape.queries + 2 * shape.keys), ones(16, shape.head_dim)
    kernels.rotate(qkv, angles[:1], angles[:1], shape.heads + shape.kv_heads)
    kernels.swiglu(ones(1, shape.inner), ones(1, shape.inner))
    if shape.qk_norm:
        weight = ones(shape.head_dim)
        kernels.norm_heads(qkv, weight, weight, shape.kv_heads, shape.norm_eps)
        kernels.norm(ones(shape.heads, shape.head_dim), weight, shape.norm_eps)
    q, k, v = ones(1, shape.queries), ones(1, shape.keys), ones(1, shape.keys)
    keys, values = ones(2, 1, 16, shape.kv_heads, shape.head_dim)
    lengths = torch.zeros(READ, dtype=torch.int32, device=device)
    attention_kernels.rotate_and_store(q, k, v, angles, angles, keys, values, lengths)
    for rows, parts in itertools.product((1, READ), (1, 2)):
        attention_kernels.attention_step(
            ones(rows, shape.queries),
            keys.expand(rows, -1, -1, -1),
            values.expand(rows, -1, -1, -1),
            lengths[:rows],
            parts,
        )
    packed, state = _compile_nf4(dtype, device)
    if dtype == torch.float16:
        for rank in (0, 16):  # without an adapter, and with that of the course
            one = vector_kernels.Weight(packed, state, b=ones(64, rank))
            few_rows = vector_kernels.FewRows([one], ones(rank, 64))
            for rows in (1, READ):
                few_rows(ones(rows, 64))


def _compile_nf4(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, Any]:
    """Compile the kernel that dequantizes; return a weight (64, 64) and its state."""
    import bitsandbytes.functional as bnb
    import torch

    from colab_utils.fast import kernels

    weight = torch.ones(64, 64, dtype=dtype, device=device)
    packed, state = bnb.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True
    )
    kernels.dequantize_nf4(packed, state, weight)
    return packed, state
