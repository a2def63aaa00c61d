"""Read GGUF files, and compute what they must hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

Q8_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights in float32 by transformers' names."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in llama.cpp's order: of each head 0, half, 1, half + 1, ..."""
    half = len(weight) // heads // 2
    order = [
        head * 2 * half + i + part * half
        for head in range(heads)
        for i in range(half)
        for part in (0, 1)
    ]
    return weight[order]


def expected(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights of a GGUF file in float32, by gguf's own table of names."""
    config = AutoConfig.from_pretrained(folder)
    family = {"mistral": "llama"}.get(config.model_type, config.model_type)
    arch = gguf.MODEL_ARCH[family.upper()]
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if family.startswith("qwen"):  # rotates the same pairs as transformers
        heads = {}
    found = {}
    for name, weight in _weights(folder).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            if part in name:
                weight = rotated(weight, count)
        found[str(table.get_name(name, (".weight", ".bias")))] = weight
    return found


def read(file: Path) -> tuple[dict[str, gguf.ReaderTensor], dict]:
    """Return tensors and fields of a GGUF file by their names."""
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def assert_holds(file: Path, wanted: dict[str, np.ndarray], kind) -> None:
    """Assert that a GGUF file holds these weights, quantized by gguf itself."""
    tensors, _ = read(file)
    assert tensors.keys() == wanted.keys()
    for name, weight in wanted.items():
        found = tensors[name]
        assert list(found.shape) == list(weight.shape[::-1])
        if weight.ndim == 1:
            assert found.tensor_type == gguf.GGMLQuantizationType.F32
            assert np.array_equal(found.data, weight)
            continue
        assert found.tensor_type == kind, name
        whole = gguf.quants.quantize(weight, kind)  # all at once
        assert found.data.tobytes() == whole.tobytes(), name


def with_config(model: Path, folder: Path, **changes) -> Path:
    """Copy a model with changes of its config."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def with_tokenizer(model: Path, folder: Path, change) -> Path:
    """Copy a model with another tokenizer.json, changed in place by `change`."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    change(state)
    path.write_text(json.dumps(state), encoding="utf-8")
    return folder
