"""What training costs in memory: computed from the model's config, measured on a run."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, Trainer

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
    """Peak bytes of a training step on `tokens` tokens, before anything is loaded.

    `method` is "qlora", "lora" or "full"; `half` says that activations are 16-bit (a
    GPU), else 32-bit (a CPU). Full fine-tuning holds its weights in 32 bits. Counts the
    tensors that autograd saves in transformers' Llama with PEFT; what a kernel needs for
    a moment is not in it.
    """
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
    layer = activation_bytes(config, method, rank, size)
    saved = layers * size * width + layer if checkpointing else layers * layer
    # The loss keeps the logits, their 32-bit copy where they are 16-bit, and softmax.
    logits = config.vocab_size * (size + 4 if half else 4)
    return Memory(
        weights=weights,
        gradients=4.0 * trainable,
        optimizer=OPTIMIZER_BYTES[optimizer] * trainable,
        activations=tokens * (saved + logits),
    )


def activation_bytes(config: LlamaConfig, method: str, rank: int, size: int) -> float:
    """Bytes a token that one decoder layer keeps for the backward pass.

    The two norms keep their inputs in 32 bits. In `size` bytes: the norms' outputs, the
    queries, keys, values and what attention makes of them, four tensors of the MLP, and
    what LoRA's A makes of each linear layer's input.
    """
    width, inner = config.hidden_size, config.intermediate_size
    (_, queries), (_, keys), *_ = linear_shapes(config)
    kept = 2 * width + 2 * queries + 2 * keys + 4 * inner
    kept += 2 * width if method == "full" else 7 * rank
    return size * kept + 4 * 2 * width


def measure(trainer: Trainer) -> Memory:
    """Bytes in use, found by one forward and backward pass on the first batch.

    Weights, gradients and optimizer states are counted tensor by tensor, activations as
    the storage that autograd saves. Call it after training: before, there are no
    optimizer states.
    """
    import torch

    model, seen, saved = trainer.model, set(), []

    def held(tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()

    def pack(tensor):
        saved.append(held(tensor))
        kept.append(tensor)  # alive until the end, so that no address is seen twice
        return tensor

    kept: list[torch.Tensor] = []
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code] if state.nested else []
    weights = sum(map(held, tensors))
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.compute_loss(model, batch)
    trainer.accelerator.backward(loss)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    states = trainer.optimizer.state.values() if trainer.optimizer else ()
    optimizer = sum(
        t.nbytes for state in states for t in state.values() if torch.is_tensor(t)
    )
    return Memory(weights, gradients, optimizer, sum(saved))


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
