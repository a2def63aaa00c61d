"""What a Llama costs in memory, computed from its config before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from colab_utils.runtime import GIB

if TYPE_CHECKING:
    from transformers import LlamaConfig

METHODS = ("qlora", "lora", "full")
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.03}
# NF4: half a byte a weight; one byte of scale for 64 weights and, doubly quantised,
# four bytes for 256 of those scales. Dettmers et al. 2023, section 3.
NF4_WEIGHT, NF4_SCALE = 0.5, 1 / 64 + 4 / (64 * 256)
# cuBLAS works in memory of its own, once for the forward and once for the backward
# pass: 8.1 MiB each, or 32 MiB from compute capability 9.0 on.
CUBLAS = 2 * 8.1 * 2**20
LOGIT_ROWS = 512  # tokens whose logits exist at a time on the fast path
MLP_ROWS = 512  # tokens of a prompt that go through an MLP at a time
# What torch takes from the card beyond the tensors that exist (gaps in its cache, with
# the setting of `runtime.quiet`): up to 0.5 GiB measured, and a margin.
RESERVE = 0.7 * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment, by what they are for.

    `working` is what one layer or the loss needs in passing, `reserve` what torch holds
    beyond its tensors.
    """

    weights: float = 0.0
    constants: float = 0.0  # of the quantisation
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    checkpoints: float = 0.0  # inputs of the layers that are computed again
    activations: float = 0.0
    logits: float = 0.0
    working: float = 0.0
    reserve: float = 0.0

    @property
    def peak(self) -> float:
        """The most that tensors take, as `torch.cuda.max_memory_allocated` counts."""
        return self.total - self.reserve

    @property
    def total(self) -> float:
        """The sum of all parts: what the card must have."""
        return sum(asdict(self).values())

    def as_gib(self) -> dict[str, float]:
        """Every part and their total in GiB."""
        parts = {part.name: getattr(self, part.name) / GIB for part in fields(self)}
        return {**parts, "total": self.total / GIB}


def check(
    config: LlamaConfig, *, method: str, rank: int, tokens: int, optimizer: str = ""
) -> None:
    """Raise ValueError for what `moments` can't compute."""
    if not hasattr(config, "intermediate_size"):
        raise ValueError(
            f"The memory plan knows models with Llama's layers, and this one is a "
            f"{config.model_type}: choose another MODEL."
        )
    for name, known in ((method, METHODS), (optimizer, ("", *OPTIMIZER_BYTES))):
        if name not in known:
            there = ", ".join(filter(None, known))
            raise ValueError(f"{name!r} is unknown; it can be: {there}.")
    for name, value in (("rank", rank), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name} = {value}, but it must be at least 1.")


def head_size(config: LlamaConfig) -> int:
    """The width of one attention head."""
    head = getattr(config, "head_dim", None)
    return head or config.hidden_size // config.num_attention_heads


def linear_shapes(config: LlamaConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the seven linear layers of one decoder layer."""
    width, inner = config.hidden_size, config.intermediate_size
    head = head_size(config)
    queries = config.num_attention_heads * head
    keys = config.num_key_value_heads * head
    attention = [(width, queries), (width, keys), (width, keys), (queries, width)]
    return [*attention, (width, inner), (width, inner), (inner, width)]


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Parameters of a LoRA on all linear layers: rank x (inputs + outputs) each."""
    one = sum(rank * (i + o) for i, o in linear_shapes(config))
    return one * config.num_hidden_layers


def parameters(config: LlamaConfig) -> tuple[int, int]:
    """Weights of all decoder layers' linears, and all other weights of the model."""
    layers, width = config.num_hidden_layers, config.hidden_size
    tied = 1 if config.tie_word_embeddings else 2
    linear = layers * sum(i * o for i, o in linear_shapes(config))
    return linear, tied * config.vocab_size * width + (2 * layers + 1) * width


def weights(config: LlamaConfig, method: str, size: int, offload: bool) -> Memory:
    """The bytes of the weights alone; `size` bytes for each that is not quantised."""
    linear, other = parameters(config)
    if offload and not config.tie_word_embeddings:
        other -= config.vocab_size * config.hidden_size
    if method == "qlora":
        return Memory(
            weights=NF4_WEIGHT * linear + size * other, constants=NF4_SCALE * linear
        )
    return Memory(weights=(4 if method == "full" else size) * (linear + other))


def estimate(
    config: LlamaConfig, method: str, rank: int, tokens: int, **options: Any
) -> Memory:
    """Bytes at the worst moment of a training step; `options` are those of `moments`.

    >>> estimate(config, "qlora", rank=16, tokens=2048, recompute=4, fast=True)
    """
    found = moments(config, method, rank, tokens, **options)
    return max(found, key=lambda one: one.total)


def at_loss(
    config: LlamaConfig, method: str, rank: int, tokens: int, **options: Any
) -> Memory:
    """What is held when the loss is known: `measuring.held` counts the same.

    `options` are those of `moments`; gradients of an earlier micro-batch are there.
    """
    options["accumulating"] = True
    loss = moments(config, method, rank, tokens, **options)[0]
    return replace(loss, working=0.0, reserve=0.0)


def moments(
    config: LlamaConfig,
    method: str,
    rank: int,
    tokens: int,
    *,
    recompute: int = 0,
    offload: bool = False,
    fast: bool = False,
    accumulating: bool = False,
    gpu: bool = True,
    optimizer: str = "adamw_torch",
) -> list[Memory]:
    """A training step on `tokens` tokens, moment by moment, for any Llama's config.

    `method` is "qlora", "lora" or "full" (which holds its weights in 32 bits). The
    first `recompute` layers keep only their input, with `offload` not even that, and
    the embeddings leave the card too; `fast` means `kernels.apply`. `accumulating` says
    that gradients of an earlier micro-batch are there, `gpu` that activations are
    16-bit, and that cuBLAS and torch's cache take their share; on a CPU they are
    32-bit. Raises ValueError for an unknown method or optimizer, a number below 1, or a
    config that is no Llama's.

    The moments: the loss is known; the backward pass of each layer, from the last to
    the first; the update.
    """
    check(config, method=method, optimizer=optimizer, rank=rank, tokens=tokens)
    layers, width, size = config.num_hidden_layers, config.hidden_size, 2 if gpu else 4
    full = method == "full"
    fast, recompute = fast and not full, max(0, min(recompute, layers))
    linear, other = parameters(config)
    trained = linear + other if full else adapter_parameters(config, rank)
    fixed = replace(
        weights(config, method, size, offload),
        adapters=0.0 if full else 4.0 * trained,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained,
        working=CUBLAS if gpu else 0.0,
        reserve=RESERVE if gpu else 0.0,
    )
    if full and optimizer == "adamw_8bit":
        # transformers keeps the states of the embeddings in 32 bits
        words = (8.0 - OPTIMIZER_BYTES[optimizer]) * config.vocab_size * width
        fixed = replace(fixed, optimizer=fixed.optimizer + words)
    layer_keeps = tokens * activation_bytes(config, method, rank, size, fast)
    loss_keeps, loss_passing = loss_bytes(config, method, tokens, size, fast)
    if gpu and not fast:
        layer_keeps += tokens * attention_bytes(config, tokens)
        # 16-bit copies of the 32-bit weights that are trained
        layer_keeps += 2.0 * (linear if full else trained) / layers
    if gpu and full:
        loss_keeps += 2.0 * config.vocab_size * width
    # Between its layers full fine-tuning computes in 32 bits.
    layer_input = tokens * width * (4 if full else size)
    if offload and gpu:
        layer_input = 0
    layer_passing = tokens * layer_bytes(config, size, fast)
    buffer = unpacked_bytes(config, method, size, fast)
    accumulated = 4.0 * trained if accumulating else 0.0

    def moment(
        below: int, own: float, gradients: float, logits: float, working: float
    ) -> Memory:
        """`below` layers wait, one holds `own`; `working` comes and goes."""
        return replace(
            fixed,
            gradients=max(accumulated, gradients),
            checkpoints=layer_input * min(below, recompute),
            activations=layer_keeps * max(below - recompute, 0) + own,
            logits=logits,
            working=fixed.working + working + buffer,
        )

    step = [moment(layers, 0.0, 0.0, loss_keeps, loss_passing)]
    for i in reversed(range(layers)):
        ready = 4.0 * trained * (layers - 1 - i) / layers
        own = layer_keeps + (layer_input if i < recompute else 0.0)
        step.append(moment(i, own, ready, 0.0, layer_passing))
    step.append(moment(0, 0.0, 4.0 * trained, 0.0, 0.0))
    return step


def activation_bytes(
    config: LlamaConfig, method: str, rank: int, size: int, fast: bool = False
) -> float:
    """Bytes a token that one decoder layer keeps for the backward pass.

    In `size` bytes: queries, keys, values and what attention makes of them; four
    tensors of the MLP (two on the fast path); the other inputs of the linears; what
    LoRA's A makes of each input. The plain path repeats keys and values for every query
    head where rows are padded, and keeps the inputs of the two norms in 32 bits, and
    when their weights are trained also what they normalised.
    """
    width, inner = config.hidden_size, config.intermediate_size
    (_, queries), (_, keys) = linear_shapes(config)[:2]
    if fast:
        heads = config.num_attention_heads
        kept = 2 * width + 2 * queries + 2 * keys + 2 * inner + 7 * rank
        return size * kept + 4 * heads
    # q, k, v share an input, gate and up another, unless each casts it for itself: in
    # 16 bits PEFT's unquantised LoRA casts all of them (o's too), autocast all but o's.
    inputs = 2 if size == 4 else {"qlora": 2, "lora": 6, "full": 5}[method]
    kept = 4 * queries + 4 * inner + inputs * width
    kept += 0 if method == "full" else 7 * rank
    return size * kept + 4 * (4 if method == "full" else 2) * width


def attention_bytes(config: LlamaConfig, tokens: int) -> float:
    """Bytes a token of attention weights that a layer keeps on the plain path.

    None where each query head has its keys. Where heads share keys, torch has only its
    plain attention on cards without flash attention, and that keeps all weights.
    """
    heads = config.num_attention_heads
    return 4.0 * heads * tokens if config.num_key_value_heads != heads else 0.0


def loss_bytes(
    config: LlamaConfig, method: str, tokens: int, size: int, fast: bool
) -> tuple[float, float]:
    """What the loss keeps for the backward pass, and what it needs in passing."""
    width, words = config.hidden_size, config.vocab_size
    if fast:  # the last norm's input and the gradient; logits of one chunk
        return 2.0 * size * width * tokens, (
            size * width * tokens + (4.0 + size) * words * min(LOGIT_ROWS, tokens)
        )
    # the last norm and a 32-bit softmax over the vocabulary; then its gradient, and the
    # logits themselves
    norm = 4.0 * width * (3 if method == "full" else 1)
    return (norm + 4.0 * words) * tokens, (4.0 + size) * words * tokens


def layer_bytes(config: LlamaConfig, size: int, fast: bool) -> float:
    """Bytes a token of gradients that live while one layer's backward pass runs."""
    width, inner = config.hidden_size, config.intermediate_size
    (_, queries), (_, keys) = linear_shapes(config)[:2]
    if not fast:
        return size * (2 * width + 3 * inner)
    rows = queries + 2 * keys
    repeated = 0 if keys == queries else 5 * queries  # keys, values and gradients
    attention = width + queries + rows + repeated
    return size * max(width + inner, 3 * width, attention, 3 * width + rows)


def unpacked_bytes(config: LlamaConfig, method: str, size: int, fast: bool) -> float:
    """The buffer in which 4-bit weights are unpacked, or 16-bit ones put together."""
    width, inner = config.hidden_size, config.intermediate_size
    if method == "full":
        return 0.0
    if not fast:
        return size * width * inner if method == "qlora" else 0.0
    (_, queries), (_, keys) = linear_shapes(config)[:2]
    return size * width * max(2 * inner, queries + 2 * keys)
