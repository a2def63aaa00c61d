"""List the weights that a GGUF file holds: names, shapes, and their source."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from colab_utils.families import QKV
from colab_utils.shape import Shape
from colab_utils.weights.shards import (
    DTYPES,
    Entry,
    find_shards,
    read_header,
    tensors_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Architecture(NamedTuple):
    """What llama.cpp computes under one name of `gguf.MODEL_ARCH`."""

    name: str
    # Rotates entry 2 i with 2 i + 1 of a head. Otherwise it rotates i with i + half, as
    # transformers does.
    permuted: bool = True
    rope_factors: bool = False  # scales the frequencies of the rotary embedding
    biased: tuple[str, ...] = ()  # linear layers that may have a bias
    nope_step: int = 0  # every such layer has no rotary embedding; 0: all layers have


# By family of `colab_utils.families`. llama.cpp: `llama_model_rope_type` and the graph
# of each architecture in src/models.
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = (*QKV, "o_proj", *MLP)
ARCHITECTURES = {
    "llama": Architecture("LLAMA", rope_factors=True, biased=LINEARS),
    "mistral": Architecture("LLAMA", rope_factors=True, biased=LINEARS),
    "qwen2": Architecture("QWEN2", permuted=False, biased=QKV),
    "qwen3": Architecture("QWEN3", permuted=False),
    "smollm3": Architecture("SMOLLM3", nope_step=4),
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


def expected_weights(config: PreTrainedConfig) -> dict[str, Expected]:
    """Return the weights of a model by the names that transformers gives them."""
    import gguf

    shape = Shape.from_config(config)
    architecture = ARCHITECTURES[shape.family]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], shape.layers)
    table = (shape.vocab, shape.width)
    sizes = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (shape.width,),
        "lm_head.weight": table,
    }
    for i in range(shape.layers):
        for name, size in layer_sizes(shape).items():
            sizes[f"model.layers.{i}.{name}"] = size
    found = {}
    for name, size in sizes.items():
        module, _, kind = name.rpartition(".")
        rotated = architecture.permuted and module.endswith(ROTATED)
        head_rows = shape.head_dim if rotated else 1
        found[name] = Expected(f"{names.get_name(module)}.{kind}", size, head_rows)
    return found


def layer_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the size of each weight of a decoder layer; a linear's is (out, in)."""
    sizes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (shape.width,),
        "post_attention_layernorm.weight": (shape.width,),
    }
    if shape.qk_norm:
        sizes["self_attn.q_norm.weight"] = (shape.head_dim,)
        sizes["self_attn.k_norm.weight"] = (shape.head_dim,)
    for layer, (inputs, outputs) in shape.linear_shapes().items():
        name = ("mlp." if layer.endswith(MLP) else "self_attn.") + layer
        sizes[f"{name}.weight"] = (outputs, inputs)
        if layer in shape.biased:
            sizes[f"{name}.bias"] = (outputs,)
    return sizes


def stored_weights(model: Path, config: PreTrainedConfig, kind: str) -> list[Tensor]:
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
                    f"{shard} holds {source}, which is not a weight of this model, or "
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
