"""Bytes of a training step, computed from the shape before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

from colab_utils.families import FAMILIES
from colab_utils.memory import activations, costs
from colab_utils.memory.costs import Memory
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """The optional settings of a `Step`."""

    recompute: int
    offload: int
    fast: bool
    accumulating: bool
    gpu: bool
    accumulators: int
    packed: bool
    optimizer: str
    embeddings: bool
    shards: int
    tiles: int
    disk: int


def estimate(
    config: PreTrainedConfig | Shape,
    method: str,
    rank: int,
    tokens: int,
    **options: Unpack[Options],
) -> Memory:
    """Return the bytes at the peak of a training step; see `Step` for the options.

    >>> estimate(config, "qlora", rank=16, tokens=2048, recompute=4, fast=True)
    """
    return Step(Shape.from_config(config), method, rank, tokens, **options).peak()


def at_loss(
    config: PreTrainedConfig | Shape,
    method: str,
    rank: int,
    tokens: int,
    **options: Unpack[Options],
) -> Memory:
    """Return the bytes held when the loss is known, as `training.memory_held` counts.

    The result includes gradients of an earlier micro-batch, and no temporary tensors.
    """
    options["accumulating"] = True
    step = Step(Shape.from_config(config), method, rank, tokens, **options)
    return replace(step.loss(), working=0.0, reserve=0.0)


@dataclass(frozen=True)
class Step:
    """A training step on one micro-batch of `tokens` tokens.

    `method` is "qlora", "lora" or "full" (in float32). The first `recompute` layers use
    gradient checkpointing and keep only their input. For the first `offload` of these
    the input is in RAM, together with the embeddings. `fast` is the fast path, which
    full fine-tuning does not have. With `accumulating`, gradients of an earlier
    micro-batch exist. With `gpu` activations are float16 or bfloat16, and cuBLAS and
    torch's cache take memory; on a CPU activations are float32. The attention kernel
    accumulates `accumulators` gradients in float32: those of q, k and v below compute
    capability 8.0, only that of q from there on. In `packed` rows it pads documents.
    With `embeddings`, an adapter also trains float32 copies of embeddings and head
    (PEFT's modules_to_save) on the reference path, with all layers checkpointed. With
    `shards` each of so many GPUs holds its part of every layer, and two whole layers.
    With several `tiles`, all layers are checkpointed and compute their heads in so many
    parts (fast.tiled_layer). Of the inputs in RAM, `disk` are on disk instead.

    Raises ValueError for an unknown method or optimizer, a number below 1, or shards
    of weights that are not in NF4 or not on the fast path.
    """

    shape: Shape
    method: str
    rank: int
    tokens: int
    recompute: int = 0
    offload: int = 0
    fast: bool = False
    accumulating: bool = False
    gpu: bool = True
    accumulators: int = 3
    packed: bool = True
    optimizer: str = "adamw_torch"
    embeddings: bool = False
    shards: int = 1
    tiles: int = 1
    disk: int = 0

    def __post_init__(self) -> None:
        """Check the settings and set what follows from them."""
        costs.check(
            method=self.method,
            rank=self.rank,
            tokens=self.tokens,
            optimizer=self.optimizer,
        )
        # Around trained embeddings, autocast keeps more copies than this counts, so all
        # layers use gradient checkpointing then.
        embeddings = self.embeddings and not self.full
        layers = self.shape.layers
        every = embeddings or self.tiles > 1
        recompute = layers if every else max(0, min(self.recompute, layers))
        offload = min(self.offload, recompute) if self.gpu else 0
        object.__setattr__(self, "recompute", recompute)
        object.__setattr__(self, "offload", offload)
        object.__setattr__(self, "disk", min(self.disk, offload))
        object.__setattr__(self, "embeddings", embeddings)
        slow = self.full or embeddings
        object.__setattr__(self, "fast", self.fast and not slow)
        if self.shards > 1 and not (self.fast and self.method == "qlora"):
            raise ValueError(
                f"shards = {self.shards}, but only QLoRA on the fast path trains with "
                "sharded weights: choose METHOD = 'qlora', a MODEL of the families "
                f"{', '.join(FAMILIES)}, and rows within its sliding window."
            )

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.method == "full"

    @property
    def size(self) -> int:
        """Bytes of a number in the compute dtype."""
        return 2 if self.gpu else 4

    @cached_property
    def trained(self) -> int:
        """The number of trained parameters."""
        if self.full:
            return sum(costs.parameters(self.shape))
        return costs.adapter_parameters(self.shape, self.rank) + self.words

    @property
    def words(self) -> int:
        """The number of parameters of embeddings and head that an adapter trains."""
        shape = self.shape
        sizes = (1 if shape.tied else 2) * shape.vocab * shape.width
        return sizes if self.embeddings else 0

    @cached_property
    def fixed(self) -> Memory:
        """The bytes held throughout the step."""
        shape = self.shape
        optimizer = costs.OPTIMIZER_BYTES[self.optimizer]
        states = optimizer * self.trained
        if self.full and self.optimizer == "adamw_8bit":
            # transformers keeps the optimizer states of the embeddings in float32
            states += (8.0 - optimizer) * shape.vocab * shape.width
        return replace(
            costs.weights(shape, self.method, self.size, self.offload > 0, self.shards),
            adapters=0.0 if self.full else 4.0 * self.trained,
            optimizer=states,
            working=self.gathered + (costs.CUBLAS if self.gpu else 0.0),
            reserve=costs.RESERVE if self.gpu else 0.0,
            ram=self.ram,
            disk=float(self.disk * self.tokens * self.shape.width * self.size),
        )

    @property
    def gathered(self) -> float:
        """Bytes of the two buffers into which sharded layers are gathered."""
        return 2 * costs.layer_bytes(self.shape) if self.shards > 1 else 0.0

    @property
    def ram(self) -> float:
        """Bytes of the layers' inputs and of the embeddings in RAM."""
        if not self.offload:
            return 0.0
        shape = self.shape
        embeddings = 0 if shape.tied else self.size * shape.vocab * shape.width
        inputs = costs.page_locked(self.tokens, shape.width * self.size)
        return float((self.offload - self.disk) * inputs + embeddings)

    @property
    def layer_input(self) -> float:
        """Bytes of a layer's input, which gradient checkpointing keeps."""
        # Full fine-tuning computes in float32 between its layers.
        return self.tokens * self.shape.width * (4 if self.full else self.size)

    @cached_property
    def layer_keeps(self) -> float:
        """Bytes that a layer without checkpointing keeps for the backward pass."""
        shape, tokens = self.shape, self.tokens
        kept = tokens * activations.activation_bytes(
            shape, self.method, self.rank, self.size, self.fast
        )
        if self.gpu and not self.fast:
            kept += tokens * activations.attention_bytes(shape, tokens)
            # copies in the compute dtype of the float32 weights that are trained
            linear, _ = costs.parameters(shape)
            copied = linear if self.full else self.trained - self.words
            kept += 2.0 * copied / shape.layers
        return kept

    def peak(self) -> Memory:
        """Return the moment with the largest total."""
        return max(self.moments(), key=lambda one: one.total)

    def moments(self) -> list[Memory]:
        """Return the moments that can be the peak.

        They are the loss, the backward pass of each layer from the last to the first,
        and the update.
        """
        backward = [self.layer(i) for i in reversed(range(self.shape.layers))]
        return [self.loss(), *backward, self.update()]

    def loss(self) -> Memory:
        """Return the moment when the loss is known: no layer has run backward yet."""
        kept, temporary = activations.loss_bytes(
            self.shape, self.method, self.tokens, self.size, self.fast
        )
        # a copy of the float32 head in the compute dtype
        if self.gpu and (self.full or self.embeddings):
            kept += 2.0 * self.shape.vocab * self.shape.width
        return self._moment(self.shape.layers, logits=kept, temporary=temporary)

    def layer(self, i: int) -> Memory:
        """Return the moment when layer `i` runs backward."""
        own = self.layer_keeps
        if i < self.recompute and not self.fast:  # a layer on the fast path keeps it
            own += self.layer_input
        layers = self.shape.layers
        accumulators = self.accumulators if self.gpu else 0
        temporary = activations.backward_bytes(
            self.shape, self.tokens, self.size, self.fast, accumulators, self.packed
        )
        if self.tiles > 1:
            own, temporary = activations.tiled_layer_bytes(
                *(self.shape, self.rank, self.tokens, self.size, accumulators),
                self.tiles,
                self.packed,
            )
        return self._moment(
            i,
            own=own,
            gradients=4.0 * (self.trained - self.words) * (layers - 1 - i) / layers
            + 4.0 * self.words,
            temporary=temporary,
        )

    def update(self) -> Memory:
        """Return the moment of the update: all gradients exist, no activations."""
        return self._moment(0, gradients=4.0 * self.trained)

    def _moment(
        self,
        waiting: int,
        *,
        own: float = 0.0,
        gradients: float = 0.0,
        logits: float = 0.0,
        temporary: float = 0.0,
    ) -> Memory:
        """Return a moment at which `waiting` layers have not run backward yet.

        The layer that runs holds `own` bytes.
        """
        kept = self.layer_keeps * max(waiting - self.recompute, 0)
        accumulated = 4.0 * self.trained if self.accumulating else 0.0
        buffer = activations.dequantized_bytes(
            self.shape, self.method, self.size, self.fast
        )
        return replace(
            self.fixed,
            gradients=max(accumulated, gradients),
            checkpoints=self.layer_input
            * max(min(waiting, self.recompute) - self.offload, 0),
            activations=kept + own,
            logits=logits,
            working=self.fixed.working + temporary + buffer,
        )
