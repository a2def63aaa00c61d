"""A model whose weights are read from its files when they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.weights import nf4
from colab_utils.weights.adapters import EMBEDDINGS, HEAD, Update
from colab_utils.weights.shards import find_shards, tensors_of

if TYPE_CHECKING:
    import torch

    # From x and W x of a linear layer to its output with the adapter.
    AddUpdate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StoredModel:
    """A model whose weights are read from its files when they are used.

    `updates` and `replaced` are its adapter. With `quantized_in` its linear weights are
    quantized to NF4 in that dtype and dequantized.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        updates: dict[str, Update] | None = None,
        replaced: dict[str, torch.Tensor] | None = None,
        quantized_in: torch.dtype | None = None,
    ) -> None:
        shards = find_shards(folder)
        self.files = {name: s for s in shards for name, _ in tensors_of(s)}
        self.folder, self.device, self.quantized_in = folder, device, quantized_in
        self.updates, self.replaced = updates or {}, replaced or {}

    def stored(self, name: str) -> torch.Tensor:
        """Return a tensor of the files; only the rows that are used are read."""
        from safetensors import safe_open

        if name not in self.files:
            raise ValueError(f"{self.folder} lacks {name}: merge again.")
        with safe_open(self.files[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        if self.quantized_in and nf4.QUANTIZED.fullmatch(name):
            return nf4.dequantized(tensor, self.quantized_in)
        return tensor

    def weight(self, name: str) -> torch.Tensor:
        """Return the stored tensor, or the one with which the adapter replaces it."""
        return self.replaced[name] if name in self.replaced else self.stored(name)

    def embedded(self, ids: list[int]) -> torch.Tensor:
        """Return the embeddings of token ids, (1, tokens, width)."""
        out = self.weight(EMBEDDINGS)[ids].float()
        if EMBEDDINGS in self.updates:
            update = self.updates[EMBEDDINGS]
            out += update.scale * update.b[ids] @ update.a
        return out[None].to(self.device)

    def add_update(
        self,
        name: str,
        weight: torch.Tensor,
        rows: slice,
        bias: torch.Tensor | float = 0.0,
    ) -> AddUpdate | None:
        """Return the function that computes W x + b + scale B (A x) from x and W x + b.

        `weight` holds the `rows` of W. PEFT computes in this order; `merge` adds B A to
        W instead. Returns None if the adapter does not update this weight.
        """
        import torch

        if name not in self.updates:
            return None
        update = self.updates[name]
        a, b = update.a.to(self.device), update.b[rows].to(self.device)
        length: torch.Tensor | float = 1.0
        if update.lengths is not None:
            merged = torch.addmm(weight, b, a, alpha=update.scale)
            length = update.lengths[rows].to(self.device) / merged.norm(dim=1)
        return lambda x, out: (
            length * (out - bias + update.scale * (x @ a.T @ b.T)) + bias
        )

    def logits(self, rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the tokens in `rows`, (positions, rows)."""
        tied = HEAD not in self.files and HEAD not in self.replaced
        table = self.weight(EMBEDDINGS if tied else HEAD)
        weight = table[rows].to(self.device).float()
        add_update, out = self.add_update(HEAD, weight, rows), hidden @ weight.T
        return add_update(hidden, out) if add_update else out
