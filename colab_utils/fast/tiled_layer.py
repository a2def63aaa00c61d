"""A decoder layer for long rows, which computes its heads and its tokens in parts.

All parts of a layer share their input. So only a few tensors of the layer's width are
as long as the row: the input, the output of attention, and gradients. What would be
wider exists for some heads (in attention) or some tokens (in the MLP) at a time. In
exchange, queries, keys and values are computed once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from colab_utils.fast import attention, ops
from colab_utils.fast.layer import Layer, SavedMlp, in_turn
from colab_utils.fast.linears import float32_product
from colab_utils.memory.costs import TILE_ROWS


@dataclass
class SavedTiles:
    """The tensors that the backward pass of a `TiledLayer` needs, for T tokens.

    `attention` has the other tensors that attention returned, for each tile.
    """

    x: torch.Tensor  # the layer's input (T, width)
    attended: torch.Tensor  # the output of attention (T, heads x D)
    h: torch.Tensor  # x plus the output of o_proj
    qkv_low: torch.Tensor | None  # x A^T (T, ranks) of the group, if it has an adapter
    o_low: torch.Tensor | None
    attention: list[list[torch.Tensor]]


class TiledLayer(Layer):
    """A layer with gradient checkpointing whose heads are in `tiles` equal parts.

    The MLP takes `TILE_ROWS` tokens at a time. `tiles` divides the number of key heads.
    The backward pass overwrites the gradient that it gets.
    """

    def __init__(self, *given: Any, tiles: int, **options: Any) -> None:
        super().__init__(*given, **options)
        self.tiles = tiles
        self.size = self.qkv.rows // (self.heads + 2 * self.kv_heads)
        # From here on, of a tile.
        self.heads //= tiles
        self.kv_heads //= tiles
        self.rotated //= tiles

    def forward(
        self, x: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, None]:
        """Return the output (T, width), and None: nothing is kept but the input."""
        *_, gate_up_given, down_given = self.split(given)
        y = self._heads_forward(x, given).h
        for rows in parts(y):
            gate_up = self._gate_up(y[rows], gate_up_given).gate_up
            out = self.down.room(len(gate_up))
            hidden = ops.swiglu(*gate_up.chunk(2, -1))
            self.down.forward(hidden, down_given, out, residual=y[rows])
            y[rows] = out.y
        return y, None

    def _heads_forward(
        self, x: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> SavedTiles:
        """Return the tensors that the backward pass needs; the MLP is not computed."""
        qkv_given, o_given, *_ = self.split(given)
        attended = self.o.empty(len(x), self.o.inputs)
        a, b = self.qkv.matrices(qkv_given)
        low = self._low(x, a)
        kept = []
        for tile in range(self.tiles):
            qkv = self._rotated(self._projected(x, low, b, tile))
            found = attention.grouped_attention(qkv, *self.where)
            attended[:, self._columns(tile)], *more = found
            kept.append(more)
            del qkv, found
        h = self.o.room(len(x))
        self.o.forward(attended, o_given, h, residual=x)
        return SavedTiles(x, attended, h.y, low, h.low, kept)

    def _columns(self, tile: int) -> slice:
        """Return the columns of a tile in the output of attention."""
        width = self.heads * self.size
        return slice(tile * width, (tile + 1) * width)

    def _rows(self, tile: int) -> torch.Tensor:
        """Return the rows of a tile in the stacked W of queries, keys and values."""
        queries, keys = self.heads * self.size, self.kv_heads * self.size
        starts = [0, self.tiles * queries, self.tiles * (queries + keys)]
        found = [
            torch.arange(size, device=self.qkv.device) + start + tile * size
            for start, size in zip(starts, (queries, keys, keys), strict=True)
        ]
        return torch.cat(found)

    def _normed(self, x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield some tokens, and the normed input of attention for them."""
        for rows in parts(x):
            yield rows, ops.norm(x[rows], self.norm_1, self.eps)

    def _low(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor | None:
        """Return x A^T of the queries, keys and values, if they have an adapter."""
        if not self.qkv.rank:
            return None
        low = self.qkv.empty(len(x), self.qkv.rank)
        for rows, normed in self._normed(x):
            torch.mm(normed, a.T, out=low[rows])
        return low

    def _projected(
        self,
        x: torch.Tensor,
        low: torch.Tensor | None,
        b: torch.Tensor,
        tile: int,
    ) -> torch.Tensor:
        """Return the queries, keys and values of a tile, not rotated yet."""
        mine, bias = self._rows(tile), self.qkv.bias()
        qkv = self.qkv.empty(len(x), len(mine))
        weight = self.qkv.weight()[mine]
        for rows, normed in self._normed(x):
            torch.mm(normed, weight.T, out=qkv[rows])
        if bias is not None:
            qkv += bias[mine]
        if low is not None:
            qkv.addmm_(low, b[mine].T)
        return qkv

    def _gate_up(self, h: torch.Tensor, given: list[torch.Tensor]) -> SavedMlp:
        """Return what the backward pass of the MLP needs, for some tokens."""
        gate_up = self.gate_up.room(len(h))
        self.gate_up.forward(ops.norm(h, self.norm_2, self.eps), given, gate_up)
        return SavedMlp(h, gate_up.y, gate_up.low, None)

    def backward_from_input(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        given: Sequence[torch.Tensor],
        need_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x (or None) and of every tensor in `parameters`."""
        qkv_given, o_given, gate_up_given, down_given = self.split(given)
        saved = self._heads_forward(x, given)
        mlp: list[torch.Tensor] = []
        for rows in parts(grad):
            some = self._gate_up(saved.h[rows], gate_up_given)
            grad[rows], found = self._mlp_backward(
                grad[rows], some, gate_up_given, down_given
            )
            mlp = _sums(mlp, found)
        del saved.h, some  # `some` has a view of it
        dx, heads = self._heads_backward(grad, saved, qkv_given, o_given, need_dx)
        return dx, [*heads, *mlp]

    def _heads_backward(
        self,
        dh: torch.Tensor,
        saved: SavedTiles,
        qkv_given: list[torch.Tensor],
        o_given: list[torch.Tensor],
        need_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x, in the memory of `dh`, and of the adapters."""
        x, low, rank = saved.x, saved.qkv_low, self.qkv.rank
        o_low = self.o.low_backward(dh, o_given)
        o_b = self.o.grad_b(dh, saved.o_low)
        o_a = self.o.grad_a(o_low, saved.attended)
        a, b = self.qkv.matrices(qkv_given)
        d_norm = torch.zeros_like(x) if need_dx else None
        d_low = x.new_zeros(len(x), rank)
        precise = dh.new_empty(0, dtype=torch.float32 if dh.is_cuda else dh.dtype)
        d_b = precise.new_zeros(self.qkv.rows, rank)
        for tile in range(self.tiles):
            mine = self._rows(tile)
            d_qkv = self._tile_backward(dh, o_low, o_given, saved, b, tile)
            if d_norm is not None:
                d_norm.addmm_(d_qkv, self.qkv.weight()[mine])
            if low is not None:
                d_low.addmm_(d_qkv, b[mine])
                d_b[mine] = float32_product(d_qkv.T, low)
            del d_qkv
        qkv_a: list[torch.Tensor] = []
        for rows in parts(x):
            if d_norm is None:
                normed = ops.norm(x[rows], self.norm_1, self.eps)
            else:
                normed = d_norm[rows].addmm_(d_low[rows], a)
                given = x[rows], self.norm_1, dh[rows], self.eps
                dh[rows] = ops.norm_backward(normed, *given)  # now it is the output
            if low is not None:
                qkv_a = _sums(qkv_a, self.qkv.grad_a(d_low[rows], normed))
        heads = [*in_turn(qkv_a, self.qkv.parts_of_b(d_b)), *in_turn(o_a, o_b)]
        return (dh if need_dx else None), heads

    def _tile_backward(
        self,
        dh: torch.Tensor,
        o_low: torch.Tensor | None,
        o_given: list[torch.Tensor],
        saved: SavedTiles,
        b: torch.Tensor,
        tile: int,
    ) -> torch.Tensor:
        """Return the gradient of the queries, keys and values of a tile."""
        columns = self._columns(tile)
        plain = self._projected(saved.x, saved.qkv_low, b, tile)
        qkv = self._rotated(plain)
        grad = dh @ self.o.weight()[:, columns]
        if o_low is not None:
            grad.addmm_(o_low, self.o.matrices(o_given)[0][:, columns])
        out = saved.attended[:, columns].contiguous()
        d_qkv = attention.grouped_attention_backward(
            grad, qkv, *self.where, out, *saved.attention[tile]
        )
        del grad, out, qkv
        self._rotated_backward(d_qkv, plain)
        return d_qkv


def parts(x: torch.Tensor) -> Iterator[slice]:
    """Yield the rows of x in slices of at most `TILE_ROWS`."""
    for start in range(0, len(x), TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, len(x)))


def _sums(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
    """Add the tensors of `other` to those of `one`, if there are any."""
    if not one:
        return other
    torch._foreach_add_(one, other)
    return one
