"""The weights of decoder layers, sharded over the processes of a group.

Each process keeps 1/N of the bytes of every layer. The fast path gathers a layer into
one of two buffers just before it computes the layer, and the next layer arrives in the
other buffer meanwhile. This needs no gradients, because the weights are frozen. The
adapters, the norms, the embeddings and the head stay whole in every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from colab_utils.fast import lora

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

ALIGN = 16  # kernels read faster where a tensor begins at a multiple of 16 bytes
NAME = "_shards"  # the attribute of a LlamaForCausalLM


class Piece(NamedTuple):
    """A tensor of a layer: a weight (`data`) or its quantization scales (`absmax`)."""

    linear: torch.nn.Linear
    attribute: str
    first: int  # byte in the layer
    shape: torch.Size
    dtype: torch.dtype

    @property
    def owner(self) -> Any:
        """The object that has the attribute; moving a model may replace it."""
        weight: Any = self.linear.weight
        return weight if self.attribute == "data" else weight.quant_state

    @property
    def last(self) -> int:
        """The byte after the tensor."""
        return self.first + self.shape.numel() * self.dtype.itemsize

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor that the owner has now."""
        return getattr(self.owner, self.attribute)

    def read_from(self, buffer: torch.Tensor) -> None:
        """Let the owner read the tensor in a buffer that holds the layer."""
        part = buffer[self.first : self.last]
        setattr(self.owner, self.attribute, part.view(self.dtype).view(self.shape))

    def free(self) -> None:
        """Leave an empty tensor, which no computation accepts."""
        setattr(self.owner, self.attribute, self.tensor.new_empty(0))


@dataclass
class ShardedLayer:
    """The tensors of a decoder layer and the bytes of them that this process keeps."""

    pieces: list[Piece]
    own: torch.Tensor  # uint8; as long in every process

    def free(self) -> None:
        """Leave the layer empty."""
        for piece in self.pieces:
            piece.free()


@dataclass
class Buffer:
    """Memory for a whole layer, the layer in it, and the gather that fills it."""

    data: torch.Tensor
    layer: int | None = None
    work: dist.Work | None = None

    def wait(self) -> None:
        """Wait for the gather: a GPU's stream waits, and the CPU does not."""
        if self.work:
            self.work.wait()
            self.work = None


@dataclass
class Shards:
    """The sharded layers of a model, and the two buffers into which they are gathered.

    All processes must call `use` with the same layers in the same order. `received`
    counts the bytes that came from other processes.
    """

    group: dist.ProcessGroup | None = None  # None is the default group
    layers: list[ShardedLayer] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    received: int = 0

    @staticmethod
    def of(model: torch.nn.Module) -> Shards | None:
        """Return the shards of a Llama, or None for a whole model."""
        return vars(model).get(NAME)

    @property
    def count(self) -> int:
        """The number of processes, each of which has one shard."""
        return dist.get_world_size(self.group)

    def add(self, module: LlamaDecoderLayer) -> None:
        """Keep this process's bytes of the next decoder layer, and free the others."""
        pieces, first = [], 0
        for linear, attribute, tensor in _tensors(module):
            piece = Piece(linear, attribute, first, tensor.shape, tensor.dtype)
            pieces.append(piece)
            first = math.ceil(piece.last / ALIGN) * ALIGN
        size = math.ceil(first / (self.count * ALIGN)) * ALIGN
        device = pieces[0].tensor.device
        whole = torch.zeros(size * self.count, dtype=torch.uint8, device=device)
        for piece in pieces:
            data = piece.tensor.detach().contiguous().view(-1).view(torch.uint8)
            whole[piece.first : piece.last] = data
        rank = dist.get_rank(self.group)
        layer = ShardedLayer(pieces, whole[rank * size :][:size].clone())
        layer.free()
        self.layers.append(layer)

    def use(self, index: int, step: int) -> None:
        """Gather a layer, and begin to gather the layer `step` after it.

        The memory of the layer is valid until the next call.
        """
        current = self._gather(index, None)
        current.wait()
        for piece in self.layers[index].pieces:
            piece.read_from(current.data)
        if 0 <= index + step < len(self.layers):
            self._gather(index + step, current)

    def allocate(self) -> None:
        """Allocate the two buffers, each as large as the largest layer, if needed."""
        if not self.buffers:
            own = max((layer.own for layer in self.layers), key=len)
            size = len(own) * self.count
            self.buffers = [Buffer(own.new_empty(size)) for _ in range(2)]

    def clear(self) -> None:
        """Free the buffers; the next pass allocates them."""
        for buffer in self.buffers:
            self._evict(buffer)
        self.buffers = []

    def _gather(self, index: int, busy: Buffer | None) -> Buffer:
        """Return the buffer of a layer; begin to fill one that is not `busy` if needed.

        On a GPU the gather begins when all kernels that were launched before it have
        ended, and runs at the same time as those that are launched later.
        """
        self.allocate()
        for buffer in self.buffers:
            if buffer.layer == index:
                return buffer
        buffer = next(one for one in self.buffers if one is not busy)
        self._evict(buffer)
        own = self.layers[index].own
        whole = buffer.data[: len(own) * self.count]
        # Newer versions of torch have renamed the function.
        new = getattr(dist, "all_gather_single", None)
        gather = new or dist.all_gather_into_tensor
        buffer.work = gather(whole, own, group=self.group, async_op=True)
        buffer.layer = index
        self.received += len(whole) - len(own)
        return buffer

    def _evict(self, buffer: Buffer) -> None:
        """Take the layer out of a buffer."""
        buffer.wait()
        if buffer.layer is not None:
            self.layers[buffer.layer].free()
        buffer.layer = None


def _tensors(
    module: LlamaDecoderLayer,
) -> Iterator[tuple[torch.nn.Linear, str, torch.Tensor]]:
    """Yield the tensors of a layer that are sharded, as a `Piece` names them.

    They are the weights, packed or not, and their quantization scales. The scales of
    the scales stay whole: they take 4 bytes for 16,384 weights.
    """
    for linear in map(lora.base_of, lora.linears(module, lora.LINEARS)):
        yield linear, "data", linear.weight.data
        if state := getattr(linear.weight, "quant_state", None):
            yield linear, "absmax", state.absmax


def shard(model: torch.nn.Module) -> None:
    """Shard the layers of a loaded model over the processes of the default group.

    Each process must have loaded the same model. Afterward the model can be trained on
    the fast path only. Raises RuntimeError if torch's process group is missing.
    """
    inner = lora.llama(model)
    shards = prepare(inner)
    for module in lora.decoder_layers(inner):
        shards.add(module)


def prepare(inner: LlamaForCausalLM) -> Shards:
    """Return the shards of a model, still without layers: `add` them from the first on.

    Raises RuntimeError without a process group, or if the model is sharded already.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "A model is sharded over the processes of torch.distributed, and this is "
            "the only one: start the training with one process for each GPU."
        )
    if Shards.of(inner):
        raise RuntimeError("The model is sharded already: load it again.")
    vars(inner)[NAME] = shards = Shards()
    inner.model.register_forward_pre_hook(_refuse)
    return shards


def _refuse(*_: object) -> None:
    """Raise RuntimeError: transformers' forward pass gathers no layers."""
    raise RuntimeError(
        "The weights of this model are sharded over several processes, and only the "
        "fast path of training gathers them. Evaluate and generate with "
        "models.load_adapter, in one process."
    )
