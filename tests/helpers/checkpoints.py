"""Small random Llamas and LoRA adapters, saved as on the Hub and by the course."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from colab_utils import demo, weights

# A weight of `make_base` that `make_adapter` updates.
NAME = "model.layers.1.self_attn.q_proj.weight"
# LoRA options that adapt a tied layer, and a pattern of the weights' names.
TIED = [
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"modules_to_save": ["lm_head"]}, "lm_head"),
    ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
    ({"modules_to_save": ["embed_tokens", "lm_head"]}, "lm_head.* and .*embed_tokens"),
]


def make_base(
    folder: Path, dtype: torch.dtype = torch.float16, shard: str = "1GB", **config
) -> Path:
    """Save a small random Llama with grouped-query attention; return its folder.

    `shard` is the largest size of a file, `config` holds changes of the config.
    """
    torch.manual_seed(0)
    made = AutoConfig.from_pretrained(demo.MODEL)
    usual = {"num_hidden_layers": 2, "num_key_value_heads": 2, "dtype": dtype}
    for name, value in (usual | config).items():
        setattr(made, name, value)
    model = AutoModelForCausalLM.from_config(made).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    generation = GenerationConfig(do_sample=False, eos_token_id=made.eos_token_id)
    generation.save_pretrained(folder)
    return folder


FAMILY_SIZES = {
    "vocab_size": 600,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def make_family(
    folder: Path, family: str, dtype: torch.dtype = torch.float16, **config
) -> Path:
    """Save a small random model of a family; return its folder.

    Its weights are large enough for clear answers; biases and norms are random, too.
    """
    torch.manual_seed(0)
    shard = config.pop("shard", "1GB")
    sizes = FAMILY_SIZES | {"initializer_range": 0.08} | config
    if family == "qwen2":
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def make_adapter(
    base: Path,
    folder: Path,
    tokenizer=None,
    scale: float = 1.0,
    noise: float = 0.1,
    **options,
) -> Path:
    """Save a LoRA with random A and B (times `scale`); return its folder.

    Fully trained layers differ from the base's by random numbers times `noise`.
    `options` are those of PEFT's LoraConfig.
    """
    torch.manual_seed(1)
    usual: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**usual | options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if options.get("init_lora_weights") and "lora_" in name:
                parameter.normal_()  # B begins at zero: the update would be zero
            if "lora_" in name and "magnitude" not in name:
                parameter.mul_(scale)
            if "modules_to_save" in name:
                parameter.add_(noise * torch.randn(parameter.shape))
    adapted.save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def make_wide(base: Path, adapter: Path, files: int, layers: int, shape: tuple) -> None:
    """Save a base of large weights alone (no config), and an adapter for them."""
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text("{}")
    torch.manual_seed(0)
    name = "model.layers.{}.mlp.up_proj.weight"
    random = torch.randn(shape).half()
    lora = {}
    for i in range(layers):
        stem = f"base_model.model.{name.format(i)}".removesuffix(".weight")
        lora[f"{stem}.lora_A.weight"] = torch.randn(4, shape[1])
        lora[f"{stem}.lora_B.weight"] = torch.randn(shape[0], 4)
    for n in range(files):
        tensors = {name.format(i): random.clone() for i in range(n, layers, files)}
        file = f"model-{n + 1}.safetensors" if files > 1 else "model.safetensors"
        save_file(tensors, base / file)
    save_file(lora, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def make_model(
    folder: Path, tokenizer, dtype: torch.dtype = torch.float16, **config
) -> Path:
    """Save a random Llama with its tokenizer, as a merged model is saved."""
    make_base(folder, dtype, eos_token_id=tokenizer.eos_token_id, **config)
    tokenizer.save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Copy a base with some tensors replaced, or left out when None."""
    shutil.copytree(base, folder)
    kept = {n: t for n, t in (tensors_of(base) | tensors).items() if t is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model folder."""
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def reference(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return PEFT's own merge in float32, rounded once."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in merged.state_dict().items()}


def assert_merged(out: Path, base: Path, adapter: Path, dtype: torch.dtype) -> None:
    """Assert that `out` equals PEFT's merge, and differs where the adapter says."""
    found, expected = tensors_of(out), reference(base, adapter, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name
    old = tensors_of(base)
    changed = {
        name for name in old if not torch.equal(old[name].to(dtype), found[name])
    }
    updates, replaced = weights.read_adapter(adapter)
    assert changed == {*updates, *replaced} and updates


def assert_untouched(older: Path) -> None:
    """Assert that the fixture `older` is as it was, and that nothing is next to it."""
    assert {file.name for file in older.iterdir()} == {"config.json", "inputs.json"}
    assert (older / "config.json").read_text() == "older"
    assert list(older.parent.iterdir()) == [older], "half a model was left behind"
