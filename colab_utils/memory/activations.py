"""Bytes of the tensors that a training step makes: formulas for a layer and the loss.

`size` is the number of bytes of a number in the compute dtype; `fast` is the fast path.
"""

from __future__ import annotations

from colab_utils.memory.costs import LOGIT_ROWS
from colab_utils.shape import Shape


def activation_bytes(
    shape: Shape, method: str, rank: int, size: int, fast: bool = False
) -> float:
    """Return the bytes per token that a decoder layer keeps for the backward pass.

    In `size` bytes a number: queries, keys, values and the output of attention; four
    tensors of the MLP (two on the fast path); the other inputs of the linears; the
    output of each LoRA A. The reference path repeats keys and values for every query
    head where sequences are padded. It also keeps the inputs of the two norms in
    float32, and the normalized tensors where the norms are trained.
    """
    width, inner, queries = shape.width, shape.inner, shape.queries
    if fast:
        kept = 2 * width + 2 * queries + 2 * shape.keys + 2 * inner + 7 * rank
        return size * kept + 4 * shape.heads
    # q, k and v share an input, as do gate and up, unless each casts it for itself. In
    # mixed precision PEFT's LoRA on unquantized weights casts all of them (o's too),
    # autocast all except o's.
    inputs = 2 if size == 4 else {"qlora": 2, "lora": 6, "full": 5}[method]
    kept = 4 * queries + 4 * inner + inputs * width
    kept += 0 if method == "full" else 7 * rank
    return size * kept + 4 * (4 if method == "full" else 2) * width


def attention_bytes(shape: Shape, tokens: int) -> float:
    """Return the bytes per token of attention weights, kept on the reference path.

    They are 0 where each query head has a key head of its own. With grouped heads torch
    has only its "math" attention on GPUs without flash attention; it keeps all weights.
    """
    return 4.0 * shape.heads * tokens if shape.kv_heads != shape.heads else 0.0


def loss_bytes(
    shape: Shape, method: str, tokens: int, size: int, fast: bool
) -> tuple[float, float]:
    """Return the bytes that the loss keeps, and those of its temporary tensors."""
    width, vocab = shape.width, shape.vocab
    if fast:  # the last norm's input and the gradient; logits of one chunk
        return 2.0 * size * width * tokens, (
            size * width * tokens + (4.0 + size) * vocab * min(LOGIT_ROWS, tokens)
        )
    # the last norm and a float32 softmax over the vocabulary; its gradient and logits
    norm = 4.0 * width * (3 if method == "full" else 1)
    return (norm + 4.0 * vocab) * tokens, (4.0 + size) * vocab * tokens


def backward_bytes(shape: Shape, size: int, fast: bool) -> float:
    """Return the bytes per token of temporary gradients while a layer runs backward."""
    width, inner, queries = shape.width, shape.inner, shape.queries
    if not fast:
        return size * (2 * width + 3 * inner)
    rows = queries + 2 * shape.keys
    repeated = 0 if shape.kv_heads == shape.heads else 5 * queries  # k, v, gradients
    attention = width + queries + rows + repeated
    return size * max(width + inner, 3 * width, attention, 3 * width + rows)


def dequantized_bytes(shape: Shape, method: str, size: int, fast: bool) -> float:
    """Return the bytes of the buffer for dequantized or concatenated weights."""
    width, inner = shape.width, shape.inner
    if method == "full":
        return 0.0
    if not fast:
        return size * width * inner if method == "qlora" else 0.0
    return size * width * max(2 * inner, shape.queries + 2 * shape.keys)
