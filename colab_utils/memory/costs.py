"""Bytes of a Llama: its weights, its adapters, generation, loading and merging.

`step` has the bytes of a training step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from colab_utils.runtime import GIB
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

METHODS = ("qlora", "lora", "full")
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.03}  # per trained parameter
# NF4 stores 4 bits per weight and, with double quantization, an 8-bit scale per 64
# weights and a float32 scale per 256 of those. Dettmers et al. 2023, section 3.
NF4_WEIGHT, NF4_SCALE, NF4_NESTED = 0.5, 1 / 64, 4 / (64 * 256)
# The workspaces of cuBLAS, one for the forward and one for the backward pass: 8.1 MiB
# each, or 32 MiB from compute capability 9.0 on.
CUBLAS = 2 * 8.1 * 2**20
PADDING, ATTENTION_TOKENS = 6, 12288  # see `attention_tokens`
LOGIT_ROWS = 512  # tokens whose logits exist at a time on the fast path
MLP_ROWS = 512  # tokens of a prompt that go through an MLP at a time
TILE_ROWS = 4096  # tokens of a long row that go through an MLP in training at a time
# Inputs of layers in RAM are kept in pieces of at most so many bytes: torch rounds
# page-locked memory up to a power of two.
PIECE = 2**26
# RAM of a free Colab machine, and what its system takes.
COLAB_RAM, SYSTEM_RAM = 12.7e9, 1.0 * GIB
# What is free of a free Colab machine's disk, when a model of 7B is on it.
COLAB_DISK = 40e9
# RAM of Python and the libraries of training.
PYTHON_RAM = 2.5 * GIB
# GPU memory that torch reserves beyond its tensors, as `runtime.quiet` sets it up:
# 0.27 GiB measured where nothing is left to give back (bench/LOG.md), and a margin.
RESERVE = 0.4 * GIB
# What several processes take of the first GPU: CUDA's part of the notebook's process,
# and the buffers of NCCL. An H100 takes 0.6 and 0.5 GiB (bench/LOG.md); CUDA takes less
# of a T4.
SHARED = 0.8 * GIB
# Bytes a second that a card sends to another through RAM, over PCIe: without direct
# access two H100s needed 43 ms more for 160 MB than with it (bench/LOG.md). Kaggle's
# T4s were not measured.
PCIE = 4e9


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment, by purpose."""

    weights: float = 0.0
    scales: float = 0.0  # quantization scales (absmax)
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    checkpoints: float = 0.0  # inputs of the checkpointed layers
    activations: float = 0.0
    logits: float = 0.0
    working: float = 0.0  # temporary tensors of one layer or of the loss
    reserve: float = 0.0  # memory that torch reserves beyond its tensors
    ram: float = 0.0  # what the plan keeps in RAM; not part of the total
    disk: float = 0.0  # what it keeps on disk, likewise

    @property
    def peak(self) -> float:
        """All tensors, as `torch.cuda.max_memory_allocated` counts them."""
        return self.total - self.reserve

    @property
    def total(self) -> float:
        """The sum of all parts: the GPU memory that is needed."""
        # asdict copies each number, and a plan sums thousands of moments
        return sum(vars(self).values()) - self.ram - self.disk

    def as_gib(self) -> dict[str, float]:
        """Return every part on the device, and their total, in GiB."""
        names = [f.name for f in fields(self) if f.name not in ("ram", "disk")]
        parts = {name: getattr(self, name) / GIB for name in names}
        return {**parts, "total": self.total / GIB}


def check(*, method: str, rank: int, tokens: int, optimizer: str = "") -> None:
    """Raise ValueError for an unknown method or optimizer, or a number below 1."""
    for name, known in ((method, METHODS), (optimizer, ("", *OPTIMIZER_BYTES))):
        if name not in known:
            choices = ", ".join(filter(None, known))
            raise ValueError(f"{name!r} is unknown; it can be: {choices}.")
    for name, value in (("rank", rank), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name} = {value}, but it must be at least 1.")


def adapter_parameters(config: PreTrainedConfig | Shape, rank: int) -> int:
    """Return the parameter count of a LoRA on all linear layers.

    Each layer has rank x (inputs + outputs) parameters (Hu et al. 2021, section 4.1).
    """
    shape = Shape.from_config(config)
    return shape.layers * sum(rank * (i + o) for i, o in shape.linear_shapes().values())


def parameters(shape: Shape) -> tuple[int, int]:
    """Return the parameter counts of the layers' linears and of the rest of the model.

    The rest is embeddings, head, norms and biases.
    """
    shapes = shape.linear_shapes()
    linear = shape.layers * sum(i * o for i, o in shapes.values())
    words = (1 if shape.tied else 2) * shape.vocab * shape.width
    layer = 2 * shape.width + sum(shapes[name][1] for name in shape.biased)
    layer += 2 * shape.head_dim if shape.qk_norm else 0
    return linear, words + shape.layers * layer + shape.width


def weights(
    shape: Shape, method: str, size: int, offload: bool = False, shards: int = 1
) -> Memory:
    """Return the bytes of the weights.

    An unquantized weight has `size` bytes, or 4 in full fine-tuning. With `offload` the
    embeddings are in RAM, unless the head is the same weight. With `shards` each GPU
    holds that part of the NF4 weights and of their scales.
    """
    linear, other = parameters(shape)
    if offload and not shape.tied:
        other -= shape.vocab * shape.width
    if method == "qlora":
        return Memory(
            weights=NF4_WEIGHT * linear / shards + size * other,
            scales=(NF4_SCALE / shards + NF4_NESTED) * linear,
        )
    return Memory(weights=(4 if method == "full" else size) * (linear + other))


def layer_bytes(shape: Shape) -> float:
    """Return the bytes of a decoder layer that are sharded: NF4 weights and scales."""
    return (NF4_WEIGHT + NF4_SCALE) * parameters(shape)[0] / shape.layers


def gathered_bytes(config: PreTrainedConfig | Shape, shards: int) -> float:
    """Return the bytes that a GPU receives from the others for one micro-batch.

    The forward and the backward pass gather each layer once, except the last two layers
    of the pass before: these are still in the two buffers.
    """
    shape = Shape.from_config(config)
    layers = 2 * max(shape.layers - 2, 0)
    return layers * layer_bytes(shape) * (shards - 1) / shards


def kv_cache_bytes(config: PreTrainedConfig | Shape, tokens: int) -> int:
    """Return the bytes of a KV cache of `tokens` tokens in float16 or bfloat16."""
    shape = Shape.from_config(config)
    return 2 * 2 * shape.keys * shape.layers * tokens


def inference(
    config: PreTrainedConfig | Shape, method: str, rank: int, tokens: int
) -> Memory:
    """Return the bytes at the peak of generation on a GPU.

    The field `activations` is the KV cache, with `tokens` tokens in all its sequences.
    The weights are NF4 for "qlora", else float16 or bfloat16. The adapter is counted
    twice: PEFT holds it, and the decoder copies it. The peak is reached when a prompt
    of `tokens` tokens is read.
    """
    check(method=method, rank=rank, tokens=tokens)
    shape, full = Shape.from_config(config), method == "full"
    width, inner = shape.width, shape.inner
    prompt = 2.0 * (2 * width * tokens + 3 * inner * min(tokens, MLP_ROWS))
    return replace(
        weights(shape, "lora" if full else method, 2),
        adapters=0.0 if full else 2 * 2.0 * adapter_parameters(shape, rank),
        activations=float(kv_cache_bytes(shape, tokens)),
        logits=6.0 * shape.vocab,
        working=CUBLAS + prompt + 2.0 * width * inner * (method == "qlora"),
        reserve=RESERVE,
    )


def attention_tokens(tokens: int) -> int:
    """Return how many tokens, with padding, one call of attention may have.

    The gradient of attention needs memory for each of them. A row of `tokens` tokens
    may be padded to PADDING times its length, up to ATTENTION_TOKENS.
    """
    return max(tokens, min(PADDING * tokens, ATTENTION_TOKENS))


def piece_rows(row: int) -> int:
    """Return how many rows of `row` bytes make a piece of page-locked RAM."""
    return max(1, PIECE // row)


def page_locked(rows: int, row: int) -> int:
    """Return the bytes of page-locked RAM for `rows` rows of `row` bytes."""
    whole, rest = divmod(rows, piece_rows(row))
    sizes = [piece_rows(row) * row] * whole + [rest * row] * (rest > 0)
    return sum(1 << (size - 1).bit_length() for size in sizes)


def ram_to_load(config: PreTrainedConfig | Shape) -> float:
    """Return the bytes of RAM for loading: Python, its libraries and a few tensors."""
    shape = Shape.from_config(config)
    return PYTHON_RAM + 4 * 2.0 * shape.vocab * shape.width


def ram_to_merge(config: PreTrainedConfig | Shape, rank: int = 16) -> float:
    """Return the bytes of RAM for a merge: Python, torch, the adapter, row blocks.

    The base adds nothing to them: a merge reads its weights in row blocks.
    """
    return 0.5 * GIB + 4.0 * adapter_parameters(config, rank)
