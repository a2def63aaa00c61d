"""Quantize weights to NF4 and back: the dequantized weights that QLoRA trains on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import recipe
from colab_utils.weights.shards import DTYPES, all_entries, entry_dtype

if TYPE_CHECKING:
    import torch

BLOCK = 2 << 20  # numbers that are quantized and dequantized at a time
# The weights that transformers quantizes: every linear layer except the head.
QUANTIZED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


def trained_dtype(shards: list[Path], adapter: Path) -> torch.dtype:
    """Return the dtype in which the base was loaded when QLoRA quantized it.

    The adapter's recipe.json records this dtype. Without a record, the function assumes
    the dtype of the files and prints a line.
    """
    import torch

    has_recipe = (adapter / "recipe.json").is_file()
    recorded = recipe.read(adapter).get("dtype") if has_recipe else None
    if recorded in DTYPES.values():
        return getattr(torch, str(recorded))
    entries = all_entries(shards).items()
    dtypes = (entry_dtype(e) for name, e in entries if QUANTIZED.fullmatch(name))
    dtype = next(dtypes, torch.float16)
    print(f"no recipe.json records the dtype of the QLoRA base: {dtype} is assumed")
    return dtype


def dequantized(
    weight: torch.Tensor, dtype: torch.dtype, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weight that QLoRA trained on: W in `dtype`, to NF4 and back.

    The function computes a part at a time, and the result equals bitsandbytes' result
    for the whole weight bit for bit (blocks of 64, double quantization). `weight` may
    be some rows of W: `scales` then holds the quantization scales of their blocks. The
    computation runs on the GPU if there is one, because QLoRA quantized W there.
    """
    import bitsandbytes.functional as bnb
    import torch

    if scales is None:
        scales = quantize_scales(block_maxima(weight, dtype))
    out, part = torch.empty(weight.shape, dtype=dtype), max(1, BLOCK // 64)
    parts = (t.split(part) for t in (out.view(-1, 64), weight.view(-1, 64), scales))
    for target, source, absmax in zip(*parts, strict=True):
        packed, state = bnb.quantize_4bit(
            source.to(scales.device, dtype), blocksize=64, quant_type="nf4"
        )
        state.absmax = absmax
        target.copy_(bnb.dequantize_4bit(packed, state))
    return out


def block_maxima(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the largest magnitude of each block of 64 weights (NF4's absmax).

    The result is on the GPU if there is one.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = weight.view(-1, 64).split(max(1, BLOCK // 64))
    return torch.cat([p.to(device, dtype).abs().amax(1).float() for p in parts])


def quantize_scales(absmax: torch.Tensor) -> torch.Tensor:
    """Return a whole weight's scales after quantization to 8 bits and back.

    QLoRA stores the scales in 8 bits: double quantization (Dettmers et al. 2023,
    section 3).
    """
    import bitsandbytes.functional as bnb

    offset = absmax.mean()
    small, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    return bnb.dequantize_blockwise(small, state) + offset
