"""List the weights that a GGUF file holds: names, shapes, and their source."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.shape import Shape
from colab_utils.weights.shards import (
    DTYPES,
    Entry,
    find_shards,
    read_header,
    tensors_of,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig

# llama.cpp's names for the modules of a decoder layer.
MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The layers whose outputs get the rotary embedding.
ROTATED = ("q_proj", "k_proj")
# Older checkpoints store these frequencies; config.json determines them.
UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Expected:
    """A weight of the model as the GGUF file names it."""

    name: str
    shape: tuple[int, ...]
    head_rows: int = 1  # rows of an attention head if llama.cpp orders them differently


@dataclass(frozen=True)
class Tensor:
    """A weight: where it is in a safetensors file, and how the GGUF file stores it."""

    name: str  # in the GGUF file
    path: Path
    begin: int  # bytes from the start of `path`
    dtype: str  # in `path`: "F16", "BF16" or "F32"
    shape: tuple[int, ...]
    kind: str  # in the GGUF file: "F32", "F16" or "Q8_0"
    head_rows: int = 1

    @property
    def size(self) -> int:
        """Return the bytes in the GGUF file. Q8_0 stores 32 weights in 34 bytes."""
        count = math.prod(self.shape)
        return {"F32": count * 4, "F16": count * 2, "Q8_0": count // 32 * 34}[self.kind]


def expected_weights(config: LlamaConfig) -> dict[str, Expected]:
    """Return the weights of a Llama by the names that transformers gives them."""
    shape = Shape.from_config(config)
    table = (shape.vocab, shape.width)
    found = {
        "model.embed_tokens.weight": Expected("token_embd.weight", table),
        "model.norm.weight": Expected("output_norm.weight", (shape.width,)),
        "lm_head.weight": Expected("output.weight", table),
    }
    linears = shape.linear_shapes()
    for i in range(shape.layers):
        for module, name in MODULES.items():
            layer = module.rpartition(".")[2]
            size: tuple[int, ...] = (shape.width,)  # of a norm
            if layer in linears:
                size = linears[layer][::-1]  # (outputs, inputs)
            head_rows = shape.head_dim if layer in ROTATED else 1
            source, target = f"model.layers.{i}.{module}", f"blk.{i}.{name}"
            found[f"{source}.weight"] = Expected(f"{target}.weight", size, head_rows)
            biased = config.attention_bias if "attn" in module else config.mlp_bias
            if biased and layer in linears:
                bias = Expected(f"{target}.bias", size[:1], head_rows)
                found[f"{source}.bias"] = bias
    return found


def stored_weights(model: Path, config: LlamaConfig, kind: str) -> list[Tensor]:
    """Return the weights of a model folder in the order of its files.

    Raises ValueError unless they are the weights that the config describes.
    """
    expected = expected_weights(config)
    found = []
    for shard in find_shards(model):
        _, begin = read_header(shard)
        for source, entry in tensors_of(shard):
            if UNUSED.fullmatch(source):
                continue
            if source not in expected:
                raise ValueError(
                    f"{shard} holds {source}, which is not a weight of this Llama, or "
                    "is stored twice. Merge a model in 4 bits, or one with an adapter, "
                    "before you export it."
                )
            weight = expected.pop(source)
            _check_entry(source, entry, weight.shape)
            tensor = Tensor(
                name=weight.name,
                path=shard,
                begin=begin + entry["data_offsets"][0],
                dtype=entry["dtype"],
                shape=weight.shape,
                kind=_kind(weight.shape, kind),
                head_rows=weight.head_rows,
            )
            found.append(tensor)
    if config.tie_word_embeddings:  # llama.cpp takes the embeddings as the head, too
        expected.pop("lm_head.weight", None)
    if first := next(iter(expected), None):
        raise ValueError(
            f"{model} lacks {len(expected)} weights (the first is {first})."
        )
    return found


def _check_entry(name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    if tuple(entry["shape"]) != shape:
        raise ValueError(
            f"{name} has the shape {tuple(entry['shape'])}, but config.json asks for "
            f"{shape}."
        )
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{name} is stored as {entry['dtype']}, but it must be one of "
            f"{', '.join(DTYPES)}: export weights in float16, bfloat16 or float32."
        )


def _kind(shape: tuple[int, ...], kind: str) -> str:
    """Return how a weight is stored: norms and biases in float32, others as `kind`.

    Q8_0 has blocks of 32 weights. A weight whose row length is not a multiple of 32 is
    stored as F16.
    """
    if len(shape) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[1] % 32 else kind
