"""What training costs in memory: computed from the config, measured on a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedModel, Trainer

GIB = 2**30
# NF4: half a byte a weight, one byte of scale for 64 weights, and (double quantisation)
# four bytes for 256 of those scales. Dettmers et al. 2023, section 3.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.03}


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of all four, in bytes."""
        return sum(asdict(self).values())

    def as_gib(self) -> dict[str, float]:
        """The four parts and their total in GiB."""
        parts = {name: value / GIB for name, value in asdict(self).items()}
        return {**parts, "total": self.total / GIB}


def linear_shapes(config: LlamaConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the seven linear layers of one decoder layer."""
    width, inner = config.hidden_size, config.intermediate_size
    head = config.head_dim or width // config.num_attention_heads
    queries = config.num_attention_heads * head
    keys = config.num_key_value_heads * head
    return [
        (width, queries),
        (width, keys),
        (width, keys),
        (queries, width),
        (width, inner),
        (width, inner),
        (inner, width),
    ]


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Parameters of a LoRA on all linear layers: rank x (inputs + outputs) each."""
    one = sum(rank * (i + o) for i, o in linear_shapes(config))
    return one * config.num_hidden_layers


def estimate(
    config: LlamaConfig,
    method: str,
    tokens: int,
    rank: int = 16,
    checkpointing: bool = False,
    half: bool = True,
    optimizer: str = "adamw_torch",
) -> Memory:
    """Bytes held in a training step on `tokens` tokens, before anything is loaded.

    `method` is "qlora", "lora" or "full"; `half` says that activations are 16-bit (a
    GPU), else 32-bit (a CPU). Full fine-tuning holds its weights in 32 bits. Counts the
    tensors that autograd saves in transformers' Llama with PEFT; what a kernel needs
    for a moment is not in it, nor is the mask of padded rows. Raises ValueError for an
    unknown method or optimizer.
    """
    choices = {method: ("qlora", "lora", "full"), optimizer: tuple(OPTIMIZER_BYTES)}
    for name, known in choices.items():
        if name not in known:
            raise ValueError(f"{name!r} is unknown; it can be: {', '.join(known)}.")
    layers, width = config.num_hidden_layers, config.hidden_size
    linear = layers * sum(i * o for i, o in linear_shapes(config))
    tied = 1 if config.tie_word_embeddings else 2
    other = tied * config.vocab_size * width + (2 * layers + 1) * width
    size = 2 if half else 4
    trainable = linear + other if method == "full" else adapter_parameters(config, rank)
    weights = {
        "full": 4.0 * (linear + other),
        "lora": size * (linear + other) + 4.0 * trainable,
        "qlora": NF4_BYTES * linear + size * other + 4.0 * trainable,
    }[method]
    # With checkpointing only the inputs of the layers stay, and one layer at a time is
    # computed again. Between the layers full fine-tuning computes in 32 bits.
    whole = 1 if checkpointing else layers
    saved = whole * activation_bytes(config, method, rank, size)
    saved += layers * (4 if method == "full" else size) * width if checkpointing else 0
    # Mixed precision keeps 16-bit copies of the 32-bit weights that are trained.
    copies = (linear if method == "full" else trainable) * whole / layers
    copies += config.vocab_size * width if method == "full" else 0
    return Memory(
        weights=weights,
        gradients=4.0 * trainable,
        optimizer=OPTIMIZER_BYTES[optimizer] * trainable,
        # The loss keeps a 32-bit softmax over the vocabulary.
        activations=tokens * (saved + 4 * config.vocab_size) + half * 2.0 * copies,
    )


def activation_bytes(config: LlamaConfig, method: str, rank: int, size: int) -> float:
    """Bytes a token that one decoder layer keeps for the backward pass.

    In `size` bytes: queries, keys, values and what attention makes of them (keys and
    values are repeated for every query head where rows are padded); four tensors of the
    MLP; the other inputs of the linear layers; what LoRA's A makes of each input. In 32
    bits: the inputs of the two norms, and when their weights are trained also what they
    normalised.
    """
    width, inner = config.hidden_size, config.intermediate_size
    queries = linear_shapes(config)[0][1]
    # q, k, v share an input, gate and up another, unless each casts it for itself: in
    # 16 bits PEFT's unquantised LoRA casts all of them (o's too), autocast all but o's.
    inputs = 2 if size == 4 else {"qlora": 2, "lora": 6, "full": 5}[method]
    kept = 4 * queries + 4 * inner + inputs * width
    kept += 0 if method == "full" else 7 * rank
    return size * kept + 4 * (4 if method == "full" else 2) * width


def measure(trainer: Trainer, batch: dict[str, Any] | None = None) -> Memory:
    """Bytes in use, found by one forward and backward pass on the first batch.

    Weights, gradients and optimizer states are counted tensor by tensor, activations as
    the storage that autograd saves. Call it after training: before, there are no
    optimizer states. `batch` is measured instead of the first one.
    """
    import torch

    model, seen, kept = trainer.model, set(), []

    def held(tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((held(tensor), tensor))  # alive, so that no address is seen twice
        return tensor

    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code] if state.nested else []
    weights = sum(map(held, tensors))
    batch = batch or next(iter(trainer.get_train_dataloader()))
    with (
        _training(model),
        _one_layer_whole(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        trainer.compute_loss_context_manager(),
    ):
        loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    trainer.accelerator.backward(loss)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    states = trainer.optimizer.state.values() if trainer.optimizer else ()
    optimizer = sum(
        t.nbytes for state in states for t in state.values() if torch.is_tensor(t)
    )
    return Memory(weights, gradients, optimizer, sum(size for size, _ in kept))


@contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def _one_layer_whole(model: PreTrainedModel) -> Iterator[None]:
    """Keep one checkpointed layer whole, as the backward pass keeps each in turn."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    last = layers[-1]
    before, last.gradient_checkpointing = last.gradient_checkpointing, False
    try:
        yield
    finally:
        last.gradient_checkpointing = before


def release() -> None:
    """Give memory back after the names that held it are deleted."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak() -> float:
    """Peak GiB so far: allocated by torch on a GPU, resident in RAM on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
