"""Write a model as one GGUF file, for llama.cpp and Ollama."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import locks, runtime
from colab_utils.families import FAMILIES
from colab_utils.shape import Shape
from colab_utils.weights.gguf_blocks import converted, equal_bytes
from colab_utils.weights.gguf_layout import ARCHITECTURES, Tensor, stored_weights
from colab_utils.weights.gguf_tokenizer import write_tokenizer
from colab_utils.weights.shards import check_disk

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

KINDS = ("q8_0", "f16")


def write_gguf(
    model: Path | str, out: Path | str | None = None, kind: str = "q8_0"
) -> Path:
    """Write a model folder (safetensors) as a GGUF file, and return the file.

    `kind` "q8_0" takes 8.5 bits a weight, "f16" takes 16. `out` is
    `<model>/<name>-Q8_0.gguf` (or F16) unless it is given. This reads and writes some
    rows at a time, so memory does not grow with the model. The file has a hidden name
    until it is complete. Raises ValueError for a model that llama.cpp would not compute
    as transformers does, and OSError when the disk is too small. Format: the GGUF
    specification of ggml.
    """
    if str(kind).lower() not in KINDS:
        raise ValueError(f"kind = {kind!r}; it can be: {', '.join(KINDS)}.")
    kind = kind.upper()
    model = Path(model).resolve()
    out = Path(out or model / f"{model.name}-{kind}.gguf")
    if out.is_dir() or out.suffix != ".gguf":
        raise ValueError(f"out = {out}, but it must be the name of a .gguf file.")
    config = _supported_config(model)
    tensors = _tensors(model, config, kind)
    with locks.writing(out):
        part = out.with_name(f".{out.name}.part")
        part.unlink(missing_ok=True)  # of a run that was killed
        check_disk(out.parent, sum(tensor.size for tensor in tensors), out.name)
        try:
            writer = _header(model.name, config, tensors, kind)
            write_tokenizer(writer, model, config.vocab_size)
            factors = _rope(writer, config)
            writer.write_header_to_file(part)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            _write_data(part, tensors, factors)
            part.replace(out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return out


def _supported_config(model: Path) -> PreTrainedConfig:
    """Return the config of a model that llama.cpp computes as transformers does."""
    from transformers import AutoConfig

    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no model: config.json is missing.")
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    family = FAMILIES.get(config.model_type)
    known = [f"{f.prefix}ForCausalLM" for f in FAMILIES.values()]
    names = config.architectures or known
    if not family or f"{family.prefix}ForCausalLM" not in names:
        names = config.architectures or [config.model_type]
        raise ValueError(
            f"{model} is a {', '.join(names)}: only {', '.join(known)} are exported "
            "here. llama.cpp's own convert_hf_to_gguf.py exports others."
        )
    if problems := _problems(config):
        raise ValueError(
            f"{model} cannot be exported: llama.cpp's architecture for "
            f"{config.model_type} does not support {', '.join(problems)}."
        )
    return config


def _problems(config: PreTrainedConfig) -> list[str]:
    """Return what llama.cpp would not compute as transformers does."""
    shape = Shape.from_config(config)
    architecture = ARCHITECTURES[shape.family]
    step = architecture.nope_step
    nope = tuple(range(step - 1, shape.layers, step)) if step else ()
    ropes = ("default", "linear", *(["llama3"] if architecture.rope_factors else []))
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    biased = [name for name in shape.biased if name not in architecture.biased]
    found = {
        f"hidden_act {shape.activation}": shape.activation not in ("silu", "swish"),
        f"rope type {shape.rope}": shape.rope not in ropes,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1) != 1,
        f"a bias of {', '.join(biased)}": bool(biased),
        f"layers {list(shape.nope)} without a rotary embedding": shape.nope != nope,
    }
    return [name for name, problem in found.items() if problem]


def _tensors(model: Path, config: PreTrainedConfig, kind: str) -> list[Tensor]:
    """Return the weights that the GGUF file holds; print what is unusual about them."""
    tensors = stored_weights(model, config, kind)
    if config.tie_word_embeddings:
        named = {tensor.name: tensor for tensor in tensors}
        head, embeddings = named.get("output.weight"), named.get("token_embd.weight")
        if head and embeddings and equal_bytes(head, embeddings):
            tensors.remove(head)
        elif head:  # transformers uses a head that differs, even if config.json ties it
            print("the head differs from the embeddings: the GGUF file holds both")
    f16 = [tensor.name for tensor in tensors if tensor.kind == "F16"]
    if f16 and kind == "Q8_0":
        print(f"in f16: {len(f16)} weights with rows not a multiple of 32 ({f16[0]})")
    return tensors


def _header(
    name: str, config: PreTrainedConfig, tensors: list[Tensor], kind: str
) -> GGUFWriter:
    """Return a writer with the fields that describe the model, and all weights."""
    import gguf
    import numpy as np

    shape = Shape.from_config(config)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[shape.family].name]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(_context_length(shape))
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    for tensor in tensors:
        code = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype("float32"), tensor.size, code
        )
    return writer


def _context_length(shape: Shape) -> int:
    """Return how many tokens llama.cpp computes as transformers does.

    These architectures of llama.cpp have no sliding window, so the window is the limit.
    """
    if shape.window is None or shape.window >= shape.max_positions:
        return shape.max_positions
    print(
        f"context length: {shape.window:,} tokens, the model's sliding window, instead "
        f"of {shape.max_positions:,}: llama.cpp does not compute this window"
    )
    return shape.window


def _rope(writer: GGUFWriter, config: PreTrainedConfig) -> np.ndarray:
    """Add the rotary embedding; return its factors, one for each frequency (or none).

    The frequencies are those of transformers' `modeling_rope_utils`.
    """
    import gguf
    import numpy as np

    rope: dict[str, Any] = dict(config.rope_parameters or {})
    head_dim = Shape.from_config(config).head_dim
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] != "llama3":
        return np.empty(0, np.float32)
    steps = np.arange(0, head_dim, 2) / head_dim
    wavelengths = 2 * math.pi * rope["rope_theta"] ** steps  # in tokens
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / wavelengths
    # 0: long waves, which the factor slows down; 1: short waves, which stay.
    smooth = ((turns - low) / (high - low)).clip(0, 1)
    factors = (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
    writer.add_tensor_info(
        "rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes
    )
    return factors


def _write_data(part: Path, tensors: list[Tensor], factors: np.ndarray) -> None:
    """Append the data of all weights to a file that contains only its header."""
    from gguf import GGUF_DEFAULT_ALIGNMENT as ALIGNMENT

    total = sum(tensor.size for tensor in tensors)
    options: dict[str, Any] = {"total": total, "unit": "B", "unit_scale": True}
    with (
        part.open("ab") as file,
        runtime.progress(None, "exporting", **options) as bar,
    ):
        for tensor in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            for data in converted(tensor):
                file.write(data.data)
                bar.update(data.nbytes)
        file.write(bytes(-file.tell() % ALIGNMENT) + factors.tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())
