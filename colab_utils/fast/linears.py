"""Linear layers that share an input, computed together in training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from colab_utils import memory
from colab_utils.fast import ops
from colab_utils.fast.lora import LinearGroup
from colab_utils.memory import costs

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from colab_utils.shape import Shape


def stay_dequantized(shape: Shape, like: torch.Tensor) -> bool:
    """Return whether weights stay dequantized: on a CPU with ten times their size free.

    There, small models need a sixth of a training and a quarter of an answer to
    dequantize them again and again. `like` has the dtype and device of the computation.
    """
    size = costs.parameters(shape)[0] * like.itemsize
    return like.device.type == "cpu" and size < memory.free_ram() / 10


class Scratch:
    """Memory for one stacked weight at a time, which all layers use in turn.

    With `keep`, quantized weights stay in it once they are dequantized: see
    `stay_dequantized`.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.kept: dict[Hashable, tuple[list[torch.Tensor], torch.Tensor]] = {}
        self.buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def take(
        self, rows: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return a matrix that is valid until the next call; the memory only grows."""
        size, key = rows * columns, (device, dtype)
        if key not in self.buffers or self.buffers[key].numel() < size:
            self.buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return self.buffers[key][:size].view(rows, columns)

    def clear(self) -> None:
        """Free the memory."""
        self.buffers.clear()
        self.kept.clear()


class Results(NamedTuple):
    """The output of a group for T tokens.

    y is (T, outputs). `low` is x A^T (T, ranks), or None without an adapter.
    """

    y: torch.Tensor
    low: torch.Tensor | None


class TrainingGroup(LinearGroup):
    """A group in training: one product with all weights, stacked, and its gradients.

    y = x W^T + bias + (x A^T) B^T. W (outputs, inputs) and A (ranks, inputs) are
    stacked, and A is scaled. B (outputs, ranks) is block-diagonal. `given` are the
    tensors of `parameters` as autograd passes them. `low` is that of `Results`.
    """

    def __init__(
        self,
        module: LlamaDecoderLayer,
        names: Sequence[str],
        like: torch.Tensor,
        scratch: Scratch,
    ) -> None:
        super().__init__(module, names, like)
        self.scratch = scratch
        self.scales = [adapter.scale for adapter in self.adapters]

    def parameters(self) -> list[torch.Tensor]:
        """Return A and B of the first adapter, of the second, and so on."""
        return [t for adapter in self.adapters for t in (adapter.a, adapter.b)]

    def weight(self) -> torch.Tensor:
        """Return W in the compute dtype; the next group may overwrite it."""
        if len(self.weights) == 1 and not hasattr(self.weights[0], "quant_state"):
            return self.weights[0]
        if self.scratch.keep and all(hasattr(w, "quant_state") for w in self.weights):
            # With the weights, because another one could get the address of a free one.
            versions = ((w.data_ptr(), w._version) for w in self.weights)
            key = (self.dtype, *versions)
            if key not in self.scratch.kept:
                out = self._stacked(self.empty(self.rows, self.inputs))
                self.scratch.kept[key] = self.weights, out
            return self.scratch.kept[key][1]
        return self._stacked(
            self.scratch.take(self.rows, self.inputs, self.dtype, self.device)
        )

    def _stacked(self, out: torch.Tensor) -> torch.Tensor:
        """Write W into `out`, and return it."""
        for weight, part in zip(self.weights, out.split(self.outputs), strict=True):
            if hasattr(weight, "quant_state"):
                ops.dequantize(weight, part)
            else:
                part.copy_(weight)
        return out

    def bias(self) -> torch.Tensor | None:
        """Return the biases of all layers (outputs,), 0 where a layer has none."""
        if all(bias is None for bias in self.biases):
            return None
        zeros = torch.zeros(self.rows, dtype=self.dtype, device=self.device)
        for bias, part in zip(self.biases, zeros.split(self.outputs), strict=True):
            if bias is not None:
                part.copy_(bias)
        return zeros

    def matrices(self, given: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B of the whole group in the compute dtype."""
        a = self.empty(self.rank, self.inputs)
        b = torch.zeros(self.rows, self.rank, dtype=self.dtype, device=self.device)
        parts = []
        for adapter in self.adapters:
            parts += [a[adapter.ranks], b[adapter.rows, adapter.ranks]]
        if parts:
            torch._foreach_copy_(parts, given)
        for adapter, scale in zip(self.adapters, self.scales, strict=True):
            if scale != 1:
                a[adapter.ranks] *= scale
        return a, b

    def room(self, tokens: int) -> Results:
        """Return uninitialized memory for the results of `forward`.

        Take it before x is computed. x is freed first, and torch's cache keeps a hole
        where a freed tensor lies between two others.
        """
        low = self.empty(tokens, self.rank) if self.rank else None
        return Results(self.empty(tokens, self.rows), low)

    def forward(
        self,
        x: torch.Tensor,
        given: list[torch.Tensor],
        room: Results,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Write y (T, outputs), plus `residual` if given, and `low` into `room`."""
        w, bias = self.weight(), self.bias()
        start = bias if residual is None else residual
        if start is None:
            torch.mm(x, w.T, out=room.y)
        else:
            torch.addmm(start, x, w.T, out=room.y)
        if residual is not None and bias is not None:
            room.y.add_(bias)
        if room.low is not None:
            a, b = self.matrices(given)
            torch.mm(x, a.T, out=room.low)
            room.y.addmm_(room.low, b.T)

    def low(self, x: torch.Tensor, given: list[torch.Tensor]) -> torch.Tensor | None:
        """Return `low` alone."""
        return x @ self.matrices(given)[0].T if self.rank else None

    def backward(
        self, grad: torch.Tensor, given: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradients of x and of `low`."""
        dx = grad @ self.weight()
        if not self.rank:
            return dx, None
        a, b = self.matrices(given)
        d_low = grad @ b
        dx.addmm_(d_low, a)
        return dx, d_low

    def low_backward(
        self, grad: torch.Tensor, given: list[torch.Tensor]
    ) -> torch.Tensor | None:
        """Return the gradient of `low` alone."""
        return grad @ self.matrices(given)[1] if self.rank else None

    def grad_a(self, d_low: torch.Tensor | None, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradient of every A."""
        if d_low is None:
            return []
        d_a = float32_product(d_low.T, x)
        return [
            d_a[adapter.ranks] * scale
            for adapter, scale in zip(self.adapters, self.scales, strict=True)
        ]

    def grad_b(
        self, grad: torch.Tensor, low: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Return the gradient of every B."""
        return [] if low is None else self.parts_of_b(float32_product(grad.T, low))

    def parts_of_b(self, d_b: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradient of every B from that of the stacked B."""
        return [d_b[adapter.rows, adapter.ranks] for adapter in self.adapters]


def float32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b, on a GPU in float32: the gradients of the adapters are float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
