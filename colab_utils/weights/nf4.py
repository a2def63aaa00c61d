"""What 4 bits make of a base model's weights: those that QLoRA trains beside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import recipe
from colab_utils.weights import shards as storage

if TYPE_CHECKING:
    import torch

BLOCK = 2 << 20  # numbers that are brought to 4 bits and back at a time
# What transformers quantises: every linear layer but the head.
QUANTISED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


def trained_dtype(shards: list[Path], adapter: Path) -> torch.dtype:
    """The dtype in which QLoRA quantised the base: it was loaded in that one before.

    Where the adapter's recipe doesn't say, that of the files, which is told in a line.
    """
    import torch

    made = adapter / "recipe.json"
    named = recipe.read(adapter).get("dtype") if made.is_file() else None
    if named in storage.DTYPES.values():
        return getattr(torch, named)
    found = (item for shard in shards for item in storage.tensors_of(shard))
    dtypes = (
        storage.dtype(entry) for name, entry in found if QUANTISED.fullmatch(name)
    )
    dtype = next(dtypes, torch.float16)
    print(f"trained beside {dtype}, as far as we know: no recipe says it")
    return dtype


def dequantised(
    weight: torch.Tensor, dtype: torch.dtype, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """What QLoRA trained on: W in `dtype`, in 4 bits (NF4, scales too) and back.

    Bit for bit what bitsandbytes makes of the whole weight, but a part at a time; of
    rows of W where `scales` has the constants of these. On a GPU where there is one,
    for there the weight was quantised when it was loaded.
    """
    import bitsandbytes.functional as bnb
    import torch

    if scales is None:
        scales = held(largest(weight, dtype))
    out, part = torch.empty(weight.shape, dtype=dtype), max(1, BLOCK // 64)
    pieces = (t.split(part) for t in (out.view(-1, 64), weight.view(-1, 64), scales))
    for place, piece, some in zip(*pieces, strict=True):
        packed, state = bnb.quantize_4bit(
            piece.to(scales.device, dtype), blocksize=64, quant_type="nf4"
        )
        state.absmax = some
        place.copy_(bnb.dequantize_4bit(packed, state))
    return out


def largest(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest magnitude of each 64 weights, their constant, where it is made."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pieces = weight.view(-1, 64).split(max(1, BLOCK // 64))
    return torch.cat([p.to(device, dtype).abs().amax(1).float() for p in pieces])


def held(absmax: torch.Tensor) -> torch.Tensor:
    """The constants of a whole weight as 8 bits hold them (double quantisation)."""
    import bitsandbytes.functional as bnb

    offset = absmax.mean()
    small, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    return bnb.dequantize_blockwise(small, state) + offset
