"""Compile the GPU kernels in the background, while a model is loaded."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from colab_utils.shape import Shape

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

_running: list[threading.Thread] = []


def prepare(config: LlamaConfig, dtype: torch.dtype, training: bool = False) -> bool:
    """Begin to compile the kernels of decoding, or those of `training`.

    False where there is nothing to compile: on a CPU, or without Triton.
    """
    import torch

    from colab_utils.fast import ops

    if not torch.cuda.is_available() or not ops.has_triton():
        return False
    run = for_training if training else for_decoding
    thread = threading.Thread(target=run, args=(config, dtype))
    thread.start()
    _running.append(thread)  # not before: what has not begun can't be waited for
    return True


def wait() -> None:
    """Until all is compiled: a GPU's step must not be recorded beside it."""
    while _running:
        _running.pop().join()


def for_training(config: LlamaConfig, dtype: torch.dtype, device: str = "cuda") -> None:
    """Run each kernel of training once on one token, so that it is compiled.

    Triton compiles for what it is called with: dtypes, and which sizes divide by 16.
    """
    import torch

    from colab_utils.fast import kernels as gpu

    size, heads = Shape.from_config(config).head_dim, config.num_attention_heads
    kv_heads = config.num_key_value_heads
    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    x, weight = ones(1, config.hidden_size), ones(config.hidden_size)
    n = gpu.norm(x, weight, config.rms_norm_eps)
    gpu.norm_backward(n, x, weight, x, config.rms_norm_eps)
    cos, sin = ones(1, size), ones(1, size)
    gpu.rotate(ones(1, (heads + 2 * kv_heads) * size), cos, sin, heads + kv_heads, 1)
    both = ones(1, 2 * config.intermediate_size)
    gpu.swiglu_backward(gpu.swiglu(*both.chunk(2, -1)), both)
    _nf4(dtype, device)


def for_decoding(config: LlamaConfig, dtype: torch.dtype, device: str = "cuda") -> None:
    """The same for the kernels of decoding; a cache has a multiple of 16 tokens."""
    import torch

    from colab_utils.fast import kernels as gpu

    size, heads = Shape.from_config(config).head_dim, config.num_attention_heads
    kv_heads = config.num_key_value_heads
    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    x, weight = ones(1, config.hidden_size), ones(config.hidden_size)
    n = gpu.norm(x, weight, config.rms_norm_eps)
    gpu.add_norm(x, n, weight, config.rms_norm_eps)
    cos, sin = ones(16, size), ones(16, size)
    qkv = ones(1, (heads + 2 * kv_heads) * size)
    gpu.rotate(qkv, cos[:1], sin[:1], heads + kv_heads, 1)
    gpu.swiglu(ones(1, config.intermediate_size), ones(1, config.intermediate_size))
    q, k, v = (ones(1, n * size) for n in (heads, kv_heads, kv_heads))
    keys, values = ones(1, 16, kv_heads, size), ones(1, 16, kv_heads, size)
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    gpu.rotate_and_store(q, k, v, cos, sin, keys, values, lengths)
    gpu.attention_step(q, keys, values, lengths)
    _nf4(dtype, device)


def _nf4(dtype: torch.dtype, device: str) -> None:
    import bitsandbytes.functional as bnb
    import torch

    from colab_utils.fast import kernels as triton_ops

    weight = torch.ones(64, 64, dtype=dtype, device=device)
    packed, state = bnb.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True
    )
    triton_ops.nf4(packed, state, weight)
