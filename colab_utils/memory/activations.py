"""Bytes of the tensors in a training step: formulas for a layer and for the loss.

`size` is the bytes per number in the compute dtype; `fast` selects the fast path.
"""

from __future__ import annotations

from colab_utils.memory.costs import LOGIT_ROWS, TILE_ROWS, attention_tokens
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
    if fast:
        # kept: the last layer's output and its gradient; temporary: a chunk's logits
        rows = min(LOGIT_ROWS, tokens)
        return 2.0 * size * width * tokens, size * (vocab + 2.0 * width) * rows
    # kept: the last norm, and a float32 softmax; temporary: its gradient, and logits
    norm = 4.0 * width * (3 if method == "full" else 1)
    return (norm + 4.0 * vocab) * tokens, (4.0 + size) * vocab * tokens


def backward_bytes(
    shape: Shape,
    tokens: int,
    size: int,
    fast: bool,
    accumulators: int,
    packed: bool = True,
) -> float:
    """Return the bytes of temporary tensors while a layer runs backward.

    On the fast path attention has its turn when the tensors of the MLP are freed.
    """
    width, inner, queries = shape.width, shape.inner, shape.queries
    if not fast:
        return 1.0 * size * tokens * (2 * width + 3 * inner)
    workspace = workspace_bytes(shape, tokens, accumulators, packed)
    # the gradients of the layer's output, of h and of the attention's output; q, k, v
    held, rows = 2 * width + queries, queries + 2 * shape.keys
    # the heads' norms keep their input, so that attention reads a copy
    held += rows if shape.qk_norm else 0
    attention = size * tokens * (held + rows) + workspace
    if shape.kv_heads != shape.heads:  # k and v are repeated, and their gradients
        attention = size * tokens * (held + 5 * queries) + max(
            workspace, size * tokens * (rows + 2 * shape.keys)
        )
    freed = size * tokens * 2 * inner
    return max(size * tokens * max(width + inner, 3 * width), attention - freed)


def tiled_layer_bytes(
    shape: Shape,
    rank: int,
    tokens: int,
    size: int,
    accumulators: int,
    tiles: int,
    packed: bool = True,
) -> tuple[float, float]:
    """Return what a `TiledLayer` holds while it runs backward, and its temporary bytes.

    It holds its input, the output of attention, and x A^T. The temporary tensors of the
    row's length are two gradients. Those of some heads are the larger: queries, keys
    and values, their gradients, and the output of attention with its gradient; or those
    of some tokens, in the MLP.
    """
    width, inner, queries = shape.width, shape.inner, shape.queries
    held = size * tokens * (width + queries + 14 * rank) + 4.0 * shape.heads * tokens
    rows = queries + 2 * shape.keys
    copies = 2 if shape.qk_norm else 1
    workspace = workspace_bytes(shape, tokens, accumulators, packed)
    heads = size * tokens * ((copies + 1) * rows + 2 * queries) + workspace
    if shape.kv_heads != shape.heads:  # k and v are repeated, and their gradients
        heads = size * tokens * (copies * rows + 4 * queries) + max(
            workspace + size * tokens * 3 * queries,
            size * tokens * (3 * queries + 2 * rows),
        )
    mlp = size * min(TILE_ROWS, tokens) * (5.0 * inner + 2 * width)
    return held, size * tokens * 2.0 * width + max(heads / tiles, mlp)


def workspace_bytes(
    shape: Shape, tokens: int, accumulators: int, packed: bool = True
) -> float:
    """Return the bytes in which the attention kernel accumulates gradients.

    They are float32, for `tokens` tokens; if several documents are packed into a row,
    with the padding of their group. Source: the workspace of PyTorch's
    mem_eff_attention/kernel_backward.h.
    """
    padded = attention_tokens(tokens) if packed else tokens
    return 4.0 * accumulators * shape.queries * padded


def dequantized_bytes(shape: Shape, method: str, size: int, fast: bool) -> float:
    """Return the bytes of the buffer for dequantized or concatenated weights."""
    width, inner = shape.width, shape.inner
    if method == "full":
        return 0.0
    if not fast:
        return size * width * inner if method == "qlora" else 0.0
    return size * width * max(2 * inner, shape.queries + 2 * shape.keys)
