"""Bytes of the tensors in a training step: formulas for a layer and for the loss.

`size` is the bytes per number in the compute dtype; `fast` selects the fast path.
"""

from __future__ import annotations

from colab_utils.memory.costs import LOGIT_ROWS
from colab_utils.shape import Shape


def activation_bytes(
    shape: Shape, method: str, rank: int, size: int, fast: bool = False
) -> float:
    """Return the bytes per token that a decoder layer keeps for the backward pass.

    These have `size` bytes a number: queries, keys, values and the output of attention;
    four tensors of the MLP (two on the fast path); the other inputs of the linears; the
    output of each LoRA A. The reference path repeats keys and values for every query
    head if sequences are padded. It also keeps the inputs of the two norms in float32,
    and the normalized tensors if the norms are trained.
    """
    width, inner, queries = shape.width, shape.inner, shape.queries
    if fast:
        kept = 2 * width + 2 * queries + 2 * shape.keys + 2 * inner + 7 * rank
        return size * kept + 4 * shape.heads
    # q, k and v share an input, as do gate and up, unless each layer keeps its own cast
    # of it. In mixed precision, PEFT's LoRA on unquantized weights casts the input of
    # every layer, and autocast that of every layer except o.
    inputs = 2 if size == 4 else {"qlora": 2, "lora": 6, "full": 5}[method]
    kept = 4 * queries + 4 * inner + inputs * width
    kept += 0 if method == "full" else 7 * rank
    return size * kept + 4 * (4 if method == "full" else 2) * width


def attention_bytes(shape: Shape, tokens: int) -> float:
    """Return the bytes per token of attention weights, kept on the reference path.

    The result is 0 if each query head has its own key head. With grouped heads and
    without flash attention, torch uses its "math" attention, which keeps all weights.
    """
    return 4.0 * shape.heads * tokens if shape.kv_heads != shape.heads else 0.0


def loss_bytes(
    shape: Shape, method: str, tokens: int, size: int, fast: bool
) -> tuple[float, float]:
    """Return the bytes that the loss keeps, and those of its temporary tensors."""
    width, vocab = shape.width, shape.vocab
    if fast:  # kept: the last norm's input and the gradient; logits of one chunk
        return 2.0 * size * width * tokens, (
            size * width * tokens + 1.0 * size * vocab * min(LOGIT_ROWS, tokens)
        )
    # kept: the last norm, and a float32 softmax; temporary: its gradient, and logits
    norm = 4.0 * width * (3 if method == "full" else 1)
    return (norm + 4.0 * vocab) * tokens, (4.0 + size) * vocab * tokens


def backward_bytes(shape: Shape, size: int, fast: bool) -> float:
    """Return the bytes per token of temporary gradients while a layer runs backward."""
    width, inner, queries = shape.width, shape.inner, shape.queries
    if not fast:
        return size * (2 * width + 3 * inner)
    rows = queries + 2 * shape.keys
    repeated = 0 if shape.kv_heads == shape.heads else 5 * queries  # k, v, gradients
    # the heads' norms keep their input, so that attention reads a copy
    attention = width + queries + (2 if shape.qk_norm else 1) * rows + repeated
    return size * max(width + inner, 3 * width, attention, 3 * width + rows)


def dequantized_bytes(shape: Shape, method: str, size: int, fast: bool) -> float:
    """Return the bytes of the buffer for dequantized or concatenated weights."""
    width, inner = shape.width, shape.inner
    if method == "full":
        return 0.0
    if not fast:
        return size * width * inner if method == "qlora" else 0.0
    return size * width * max(2 * inner, shape.queries + 2 * shape.keys)
