"""Write a Llama as one GGUF file, for llama.cpp and Ollama, some rows at a time."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from colab_utils import runtime
from colab_utils.weights import gguf_tokenizer as vocabulary
from colab_utils.weights import shards as storage

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import LlamaConfig

KINDS = ("q8_0", "f16")
BLOCK = 2 << 20  # bytes that are read and converted at a time
WORKERS = 2
# What llama.cpp calls the parts of a layer.
PARTS = {
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
UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Tensor:
    """A weight as it lies in a safetensors file, and what becomes of it."""

    name: str  # in the GGUF file
    path: Path
    begin: int  # bytes from the start of `path`
    dtype: str  # "F16", "BF16" or "F32"
    shape: tuple[int, ...]
    kind: str  # "F32", "F16" or "Q8_0"
    head: int = 1  # rows of an attention head that are put in another order


def write_gguf(model: Path, out: Path | None = None, kind: str = "q8_0") -> Path:
    """Write a model folder (safetensors) as a GGUF file, and return the file.

    `kind` "q8_0" keeps 8.5 bits of a weight, "f16" all 16. `out` is
    `<model>/<name>-Q8_0.gguf` (or F16) unless it is given. Reads and writes rows, some
    at a time: memory does not grow with the model. Written beside `out` and renamed at
    the end. Raises ValueError for what llama.cpp cannot run as transformers does, and
    OSError when the disk is too small. Format: the GGUF specification of ggml.
    """
    if str(kind).lower() not in KINDS:
        raise ValueError(f"kind = {kind!r}; it can be: {', '.join(KINDS)}.")
    kind = kind.upper()
    model = Path(model).resolve()
    out = Path(out or model / f"{model.name}-{kind}.gguf")
    if out.is_dir() or out.suffix != ".gguf":
        raise ValueError(f"out = {out}, but it must be the name of a .gguf file.")
    config = _config(model)
    tensors = _tensors(model, config, kind)
    part = out.with_name(f".{out.name}.part")
    part.unlink(missing_ok=True)  # of a run that was killed
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.check_disk(out.parent, sum(map(_size, tensors)), out.name)
    try:
        writer = _header(model.name, config, tensors, kind)
        vocabulary.write(writer, model, config.vocab_size)
        extra = _rope(writer, config)
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        _write_data(part, tensors, extra)
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return out


def _config(model: Path) -> LlamaConfig:
    """The config of a Llama that llama.cpp computes as transformers does."""
    from transformers import AutoConfig

    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no model: config.json is missing.")
    config = AutoConfig.from_pretrained(model)
    names, llama = config.architectures, ["LlamaForCausalLM"]
    if config.model_type != "llama" or (names or llama) != llama:
        names = names or [config.model_type]
        raise ValueError(
            f"{model} is a {', '.join(names)}: only LlamaForCausalLM is exported here. "
            "llama.cpp's own convert_hf_to_gguf.py knows others."
        )
    rope = config.rope_parameters
    problems = {
        f"hidden_act {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        f"rope type {rope['rope_type']}": rope["rope_type"]
        not in ("default", "linear", "llama3"),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1) != 1,
    }
    if found := [name for name, problem in problems.items() if problem]:
        raise ValueError(
            f"{model} cannot be exported: {', '.join(found)} not supported."
        )
    return config


def _shapes(config: LlamaConfig) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """For each weight its name in GGUF, its shape, and the rows of a rotary head."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    rows = {
        "attn_q": (queries * head, width),
        "attn_k": (keys * head, width),
        "attn_v": (keys * head, width),
        "attn_output": (width, queries * head),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    found = {
        "model.embed_tokens.weight": ("token_embd.weight", (config.vocab_size, width)),
        "model.norm.weight": ("output_norm.weight", (width,)),
        "lm_head.weight": ("output.weight", (config.vocab_size, width)),
    }
    for i in range(config.num_hidden_layers):
        for part, name in PARTS.items():
            shape = rows.get(name, (width,))
            source, target = f"model.layers.{i}.{part}", f"blk.{i}.{name}"
            found[f"{source}.weight"] = (f"{target}.weight", shape)
            biased = config.attention_bias if "attn" in part else config.mlp_bias
            if biased and name in rows:
                found[f"{source}.bias"] = (f"{target}.bias", shape[:1])
    rotary = ("attn_q.", "attn_k.")
    return {
        source: (name, shape, head if any(r in name for r in rotary) else 1)
        for source, (name, shape) in found.items()
    }


def _tensors(model: Path, config: LlamaConfig, kind: str) -> list[Tensor]:
    """The weights in the order of the files; ValueError unless they fit the config."""
    wanted, found = _shapes(config), []
    for shard in storage.find_shards(model):
        _, begin = storage.header(shard)
        for source, entry in storage.tensors_of(shard):
            if UNUSED.fullmatch(source):
                continue
            if source not in wanted:
                raise ValueError(
                    f"{shard} holds {source}, which is no weight of this Llama in 16 "
                    "bits, or is there twice. A model in 4 bits or with an adapter is "
                    "merged first."
                )
            name, shape, head = wanted.pop(source)
            if tuple(entry["shape"]) != shape:
                raise ValueError(
                    f"{source} is {tuple(entry['shape'])}, config.json wants {shape}."
                )
            if entry["dtype"] not in storage.DTYPES:
                raise ValueError(
                    f"{source} is stored as {entry['dtype']}, it can be "
                    f"{', '.join(storage.DTYPES)}: export weights of 16 or 32 bits."
                )
            begins = begin + entry["data_offsets"][0]
            stored = _kind(shape, kind)
            found.append(
                Tensor(name, shard, begins, entry["dtype"], shape, stored, head)
            )
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)  # llama.cpp takes the embeddings, too
        stored = {tensor.name: tensor for tensor in found}
        head, embeddings = stored.get("output.weight"), stored.get("token_embd.weight")
        if head and embeddings and _same(head, embeddings):
            found.remove(head)
        elif head:  # transformers does not tie another head, whatever the config says
            print("the head differs from the embeddings, and is written beside them")
    if wanted:
        raise ValueError(
            f"{model} lacks {len(wanted)} weights (the first is {next(iter(wanted))})."
        )
    if odd := [
        tensor.name
        for tensor in found
        if kind != _kind(tensor.shape, kind) and len(tensor.shape) > 1
    ]:
        print(f"f16: {len(odd)} weights whose rows are no multiple of 32 ({odd[0]})")
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two weights of one shape are stored as the same bytes."""
    if one.dtype != other.dtype:
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        blocks = zip(_blocks(one, a), _blocks(other, b), strict=True)
        return all(x == y for x, y in blocks)


def _kind(shape: tuple[int, ...], kind: str) -> str:
    """Norms and biases stay in 32 bits; Q8_0 has blocks of 32."""
    if len(shape) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[1] % 32 else kind


def _size(tensor: Tensor) -> int:
    """Bytes in the GGUF file."""
    count = math.prod(tensor.shape)
    return {"F32": count * 4, "F16": count * 2, "Q8_0": count // 32 * 34}[tensor.kind]


def _header(
    name: str, config: LlamaConfig, tensors: list[Tensor], kind: str
) -> GGUFWriter:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for tensor in tensors:
        code = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype("float32"), _size(tensor), code
        )
    return writer


def _rope(writer: GGUFWriter, config: LlamaConfig) -> np.ndarray:
    """Add what llama.cpp needs of the rotary embedding; a tensor's data, if it has one.

    Source: transformers' `modeling_rope_utils`, whose frequencies these are.
    """
    import gguf
    import numpy as np

    rope = config.rope_parameters
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] != "llama3":
        return np.empty(0, np.float32)
    steps = np.arange(0, config.head_dim, 2) / config.head_dim
    waves = 2 * math.pi * rope["rope_theta"] ** steps  # in tokens
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / waves - low) / (high - low)
    smooth = smooth.clip(0, 1)  # 0: a long wave, slowed down; 1: a short one, kept
    factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
    data = factors.astype(np.float32)
    writer.add_tensor_info("rope_freqs.weight", data.shape, data.dtype, data.nbytes)
    return data


def _write_data(part: Path, tensors: list[Tensor], extra: np.ndarray) -> None:
    """Append the data of all tensors to a file that has its header."""
    from gguf import GGUF_DEFAULT_ALIGNMENT as ALIGNMENT

    total = sum(map(_size, tensors))
    with (
        part.open("ab") as file,
        runtime.progress(
            None, "exporting", total=total, unit="B", unit_scale=True
        ) as bar,
    ):
        for tensor in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            for data in _converted(tensor):
                file.write(data)
                bar.update(data.nbytes)
        file.write(bytes(-file.tell() % ALIGNMENT) + extra.tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())


def _blocks(tensor: Tensor, file: BinaryIO) -> Iterator[bytearray]:
    """A weight's bytes as they are stored, whole rows and heads at a time."""
    size = 4 if tensor.dtype == "F32" else 2
    unit = tensor.head * math.prod(tensor.shape[1:]) * size  # bytes kept together
    block = unit * max(1, BLOCK // unit)
    file.seek(tensor.begin)
    whole = math.prod(tensor.shape) * size
    return storage.read_blocks(file, whole, block, tensor.path)


def _converted(tensor: Tensor) -> Iterator[np.ndarray]:
    """A weight's new bytes, some rows at a time, converted in threads."""
    pending: deque = deque()
    with tensor.path.open("rb") as file, ThreadPoolExecutor(WORKERS) as pool:
        for data in _blocks(tensor, file):
            pending.append(pool.submit(_convert, tensor, data))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _convert(tensor: Tensor, data: bytearray) -> np.ndarray:
    """Some rows in the dtype of the GGUF file."""
    import gguf
    import numpy as np

    if tensor.dtype == "BF16":  # the upper half of a float32
        rows = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        rows = rows.view(np.float32)
    else:
        rows = np.frombuffer(data, storage.DTYPES[tensor.dtype])
    rows = rows.reshape(-1, *tensor.shape[1:])
    if tensor.head > 1:
        # transformers rotates entry i with i + half, llama.cpp 2 i with 2 i + 1
        halves = rows.reshape(-1, 2, tensor.head // 2, *tensor.shape[1:])
        rows = halves.swapaxes(1, 2).reshape(rows.shape)
    if tensor.kind != "F16":
        rows = rows.astype(np.float32)  # which the reference quantises
    with np.errstate(over="ignore", invalid="ignore"):
        out = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[tensor.kind])
    # In Q8_0 a block's scale, its first two bytes, shows what its weights are.
    shown = out.reshape(-1, 34)[:, :2].copy() if tensor.kind == "Q8_0" else out
    dtype = np.float32 if tensor.kind == "F32" else np.float16
    if not np.isfinite(shown.view(dtype)).all():
        raise ValueError(
            f"{tensor.name} holds a number that {tensor.kind} cannot (NaN, infinite or "
            "too large): " + ("try q8_0." if tensor.kind == "F16" else "train again.")
        )
    return out
