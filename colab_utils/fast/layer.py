"""A decoder layer of Llama with its LoRA on one batch: the output and the gradient.

Linear layers that share an input (q, k, v; gate, up) share a matrix product, and sums
are computed in place. The backward pass recomputes cheap tensors (norms, SwiGLU) and
takes the rest from the forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from colab_utils.fast import attention, lora, ops
from colab_utils.fast.linears import Scratch, TrainingGroup
from colab_utils.fast.sharding import Shards

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from colab_utils.shape import Shape


class Batch(NamedTuple):
    """The inputs that all layers share: rotary angles (T, D), groups of documents."""

    cos: torch.Tensor
    sin: torch.Tensor
    groups: list[attention.Group]
    shared: attention.Shared | None = None


@dataclass
class SavedMlp:
    """The tensors that the backward pass of an MLP needs, for T tokens.

    `backward` deletes each large tensor after its last use, which bounds the peak
    memory. The `_low` tensors are x A^T (T, ranks) of the groups, None without an
    adapter.
    """

    h: torch.Tensor  # the layer's input plus the output of o_proj (T, width)
    gate_up: torch.Tensor  # (T, 2 x inner)
    gate_up_low: torch.Tensor | None
    down_low: torch.Tensor | None


@dataclass
class Saved(SavedMlp):
    """The tensors that the backward pass of a layer needs, for T tokens."""

    x: torch.Tensor  # the layer's input (T, width)
    qkv: torch.Tensor  # rotated; with norms of the heads: before norms and rotation
    attended: torch.Tensor  # the attention's output, the input of o_proj
    qkv_low: torch.Tensor | None
    o_low: torch.Tensor | None
    attention: tuple[torch.Tensor, ...]  # the other tensors that `attention` returned

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Saved:
        """Return the object whose `tensors` method returned this list."""
        h, gate_up, *low, x, qkv, attended, qkv_low, o_low = tensors[:9]
        rest = x, qkv, attended, qkv_low, o_low, tuple(tensors[9:])
        return cls(h, gate_up, low[0], low[1], *rest)

    def tensors(self) -> list[torch.Tensor | None]:
        """Return all tensors as a list, as autograd saves them."""
        mlp = [self.h, self.gate_up, self.gate_up_low, self.down_low]
        heads = [self.x, self.qkv, self.attended, self.qkv_low, self.o_low]
        return [*mlp, *heads, *self.attention]


class Layer:
    """One decoder layer on one batch.

    With `checkpoint` (gradient checkpointing) `autograd` keeps only the layer's input
    for the backward pass, with `offload` in RAM, with `on_disk` in a file. With
    `shards`, call `gather` before `forward` and before the backward pass.
    """

    def __init__(
        self,
        module: LlamaDecoderLayer,
        index: int,
        shape: Shape,
        batch: Batch,
        like: torch.Tensor,
        scratch: Scratch,
        checkpoint: bool = False,
        offload: bool = False,
        on_disk: bool = False,
        shards: Shards | None = None,
    ) -> None:
        self.linears = [TrainingGroup(module, g, like, scratch) for g in lora.GROUPS]
        self.qkv, self.o, self.gate_up, self.down = self.linears
        self.cos, self.sin, self.groups, self.shared = batch
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.rotated = 0 if index in shape.nope else shape.heads + shape.kv_heads
        self.head_norms = lora.head_norms(module)
        self.norm_1 = module.input_layernorm.weight
        self.norm_2 = module.post_attention_layernorm.weight
        self.eps = shape.norm_eps
        self.checkpoint, self.on_disk = checkpoint, checkpoint and on_disk
        self.offload = checkpoint and offload
        self.index, self.shards = index, shards

    @property
    def where(self) -> tuple[int, int, list[attention.Group], attention.Shared | None]:
        """What attention needs besides queries, keys and values."""
        return self.heads, self.kv_heads, self.groups, self.shared

    def gather(self, step: int) -> None:
        """Gather the layer if it is sharded, and begin to gather the one at `step`."""
        if self.shards:
            self.shards.use(self.index, step)

    def parameters(self) -> list[torch.Tensor]:
        """Return A and B of every adapter in turn: autograd needs them as arguments."""
        return [tensor for group in self.linears for tensor in group.parameters()]

    def split(self, given: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Return the tensors of `parameters` as one list for each group."""
        rest = iter(given)
        counts = [2 * len(group.adapters) for group in self.linears]
        return [list(itertools.islice(rest, count)) for count in counts]

    def forward(
        self, x: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, Saved | None]:
        """Return the output (T, width), and the tensors that `backward` needs."""
        out = self.down.room(len(x))
        saved = self.recompute(x, given)
        hidden = ops.swiglu(*saved.gate_up.chunk(2, -1))
        self.down.forward(hidden, self.split(given)[3], out, residual=saved.h)
        saved.down_low = out.low
        return out.y, saved

    def recompute(self, x: torch.Tensor, given: Sequence[torch.Tensor]) -> Saved:
        """Return the tensors that `backward` needs; `down_proj` is not computed."""
        qkv_given, o_given, gate_up_given, _ = self.split(given)
        qkv = self.qkv.room(len(x))
        self.qkv.forward(ops.norm(x, self.norm_1, self.eps), qkv_given, qkv)
        attended, *kept = attention.grouped_attention(self._rotated(qkv.y), *self.where)
        h, gate_up = self.o.room(len(x)), self.gate_up.room(len(x))
        self.o.forward(attended, o_given, h, residual=x)
        self.gate_up.forward(
            ops.norm(h.y, self.norm_2, self.eps), gate_up_given, gate_up
        )
        heads = x, qkv.y, attended, qkv.low, h.low, tuple(kept)
        return Saved(h.y, gate_up.y, gate_up.low, None, *heads)

    def _rotated(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return qkv with its heads normalized and rotated.

        Rotation works in place. A norm does not: its backward pass needs its input.
        """
        if self.head_norms:
            q, k = (norm.weight for norm in self.head_norms)
            qkv = ops.norm_heads(qkv, q, k, self.kv_heads, self.eps)
        if self.rotated:
            ops.rotate(qkv, self.cos, self.sin, self.rotated)
        return qkv

    def _rotated_backward(self, grad: torch.Tensor, qkv: torch.Tensor) -> None:
        """Overwrite `grad`, the gradient of `_rotated`, with that of its input."""
        if self.rotated:
            ops.rotate(grad, self.cos, self.sin, self.rotated, -1)
        if self.head_norms:
            q, k = (norm.weight for norm in self.head_norms)
            ops.norm_heads_backward(grad, qkv, q, k, self.kv_heads, self.eps)

    def backward(
        self,
        grad: torch.Tensor,
        saved: Saved,
        given: Sequence[torch.Tensor],
        need_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x (or None) and of every tensor in `parameters`."""
        qkv_given, o_given, gate_up_given, down_given = self.split(given)
        dh, mlp = self._mlp_backward(grad, saved, gate_up_given, down_given)
        dx, heads = self._attention_backward(dh, saved, qkv_given, o_given, need_dx)
        return dx, [*heads, *mlp]

    def backward_from_input(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        given: Sequence[torch.Tensor],
        need_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return what `backward` does; only the layer's input x has been kept."""
        return self.backward(grad, self.recompute(x, given), given, need_dx)

    def _mlp_backward(
        self,
        grad: torch.Tensor,
        saved: SavedMlp,
        gate_up_given: list[torch.Tensor],
        down_given: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradients of h and of the adapters."""
        d_hidden, d_low = self.down.backward(grad, down_given)
        ops.swiglu_backward(d_hidden, saved.gate_up)
        # It has overwritten both: with the input of down_proj, and with a gradient.
        hidden, d_gate_up = d_hidden, saved.gate_up
        del d_hidden, saved.gate_up
        if saved.down_low is None:
            saved.down_low = self.down.low(hidden, down_given)
        down_b = self.down.grad_b(grad, saved.down_low)
        down_a = self.down.grad_a(d_low, hidden)
        del hidden
        d_norm, d_low = self.gate_up.backward(d_gate_up, gate_up_given)
        gate_up_b = self.gate_up.grad_b(d_gate_up, saved.gate_up_low)
        del d_gate_up
        dh = ops.norm_backward(d_norm, saved.h, self.norm_2, grad, self.eps)
        normed = d_norm  # overwritten with the norm's output
        gate_up_a = self.gate_up.grad_a(d_low, normed)
        return dh, [*in_turn(gate_up_a, gate_up_b), *in_turn(down_a, down_b)]

    def _attention_backward(
        self,
        dh: torch.Tensor,
        saved: Saved,
        qkv_given: list[torch.Tensor],
        o_given: list[torch.Tensor],
        need_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x (or None) and of the adapters."""
        d_attended, d_low = self.o.backward(dh, o_given)
        o_b = self.o.grad_b(dh, saved.o_low)
        o_a = self.o.grad_a(d_low, saved.attended)
        qkv = self._rotated(saved.qkv) if self.head_norms else saved.qkv
        d_qkv = attention.grouped_attention_backward(
            d_attended, qkv, *self.where, saved.attended, *saved.attention
        )
        del d_attended, qkv
        self._rotated_backward(d_qkv, saved.qkv)
        del saved.attended, saved.h
        qkv_b = self.qkv.grad_b(d_qkv, saved.qkv_low)
        dx = None
        if need_dx:
            d_norm, d_low = self.qkv.backward(d_qkv, qkv_given)
            del d_qkv, saved.qkv
            dx = ops.norm_backward(d_norm, saved.x, self.norm_1, dh, self.eps)
            normed = d_norm  # overwritten with the norm's output
        else:
            d_low = self.qkv.low_backward(d_qkv, qkv_given)
            del d_qkv, saved.qkv
            normed = ops.norm(saved.x, self.norm_1, self.eps)
        qkv_a = self.qkv.grad_a(d_low, normed)
        return dx, [*in_turn(qkv_a, qkv_b), *in_turn(o_a, o_b)]


def in_turn(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return A and B of the first adapter, of the second, and so on."""
    return [tensor for pair in zip(a, b, strict=True) for tensor in pair]
