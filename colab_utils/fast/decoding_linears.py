"""Linear layers that share an input, computed together in decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from colab_utils.fast import ops
from colab_utils.fast.lora import LinearGroup

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from colab_utils.fast.vector_kernels import FewRows

# Up to so many rows, bitsandbytes' fused product is faster than dequantizing first.
FUSED_ROWS = 64
# The most tokens of one row that a decoder reads at once.
READ = 4


class DecodingGroup(LinearGroup):
    """A group in decoding: a product for each weight, and copies of its adapters.

    The copies are in the compute dtype and scaled. They keep their place in memory,
    because a recorded step reads them there. With `whole`, quantized weights are
    dequantized once, instead of in each product. A few tokens on a GPU, in float16,
    have kernels of their own.
    """

    def __init__(
        self,
        module: LlamaDecoderLayer,
        names: Sequence[str],
        like: torch.Tensor,
        whole: bool = False,
    ) -> None:
        super().__init__(module, names, like)
        if whole:
            self.weights = [_dequantized(weight, like) for weight in self.weights]
        self.a = self.empty(self.rank, self.inputs)
        self.b = [
            self.empty(self.outputs[one.linear], one.ranks.stop - one.ranks.start)
            for one in self.adapters
        ]
        self.few_rows = self._few_rows()

    def _few_rows(self) -> FewRows | None:
        """Return the kernels for a few tokens, or None where they can't compute it."""
        fits = self.dtype == torch.float16 and self.inputs % 64 == 0
        if not (fits and self.device.type == "cuda" and ops.has_triton()):
            return None
        if not all(map(ops.is_usual_nf4, self.weights)):
            return None
        kernels = ops.triton_module("vector_kernels")
        adapters = {
            one.linear: (b, one.ranks.start)
            for one, b in zip(self.adapters, self.b, strict=True)
        }
        pairs: Iterable[tuple[Any, Any]] = zip(self.weights, self.biases, strict=True)
        weights = [
            kernels.Weight(w.data, w.quant_state, bias, *adapters.get(i, ()))
            for i, (w, bias) in enumerate(pairs)
        ]
        return cast("FewRows", kernels.FewRows(weights, self.a))

    def copies(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """Yield each tensor of an adapter, its copy, and the factor of the copy."""
        for adapter, b in zip(self.adapters, self.b, strict=True):
            yield adapter.a, self.a[adapter.ranks], adapter.scale
            yield adapter.b, b, 1.0

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the output (T, outputs) of each layer."""
        if self.few_rows and len(x) <= self.few_rows.MOST:
            return self.few_rows(x)
        pairs = zip(self.weights, self.biases, strict=True)
        found = [_product(x, weight, bias) for weight, bias in pairs]
        if self.rank:
            low = x @ self.a.T
            for adapter, b in zip(self.adapters, self.b, strict=True):
                found[adapter.linear].addmm_(low[:, adapter.ranks], b.T)
        return found


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return x W^T + bias for a weight that may be quantized."""
    state = getattr(weight, "quant_state", None)
    if state is not None and x.is_cuda and len(x) <= FUSED_ROWS:
        import bitsandbytes as bnb

        # bitsandbytes' __init__ does not declare its exports, so mypy can't find this.
        product = bnb.matmul_4bit  # type: ignore[attr-defined]
        return product(x, weight.data.t(), state, bias=bias)
    return torch.nn.functional.linear(x, _dequantized(weight, x), bias)


def _dequantized(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a weight that may be quantized, in the dtype of `like` if it is."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    out = like.new_empty(state.shape)
    ops.dequantize(weight, out)
    return out
