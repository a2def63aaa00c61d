"""Emulate a T4 on a larger GPU, save random models, and append rows to result files."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LlamaConfig

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "bitsandbytes", "transformers", "peft", "trl")
PACKAGES += ("unsloth", "xformers")
CAP = 14.2  # GiB that torch may take: a T4 has 14.56, and CUDA itself needs some

# What differs from transformers' default config of a Llama, which has 7B's sizes.
LLAMA_2: dict[str, dict[str, Any]] = {
    "7B": {"max_position_embeddings": 4096},
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "max_position_embeddings": 4096,
    },
}

# Parts of the names of GPU kernels, by kind.
KINDS = {
    "attention": ("fmha", "attention", "flash"),
    "products": ("gemm", "cutlass", "cublas", "nvjet", "xmma"),
    "unpacking": ("dequant",),
    "copies": ("memcpy", "memset"),
}


def limit() -> bool:
    """Limit torch to a T4's memory and attention; return False if there is no GPU."""
    if not torch.cuda.is_available():
        return False
    card = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP * 2**30 / card)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return True


def t4() -> bool:
    """Call `limit`, and let `runtime` choose float16 as on a T4."""
    from colab_utils import runtime

    if not limit():
        return False
    runtime.dtype_for = lambda capability, name: ("float16", "float16: as on a T4")
    return True


def random_model(config: LlamaConfig, folder: Path) -> None:
    """Save a Llama of random float16 weights, unless `folder` exists."""
    from transformers import AutoModelForCausalLM

    if folder.exists():
        return
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder, max_shard_size="5GB")


def random_4bit(_: int, config: LlamaConfig, folder: Path) -> None:
    """Save a Llama of random NF4 weights, one layer at a time: it may fit no GPU.

    To be started by `torch.multiprocessing.spawn`, so that the caller takes no memory
    of a GPU.
    """
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from colab_utils import models

    t4()
    folder.mkdir()
    torch.manual_seed(0)
    config.architectures = ["LlamaForCausalLM"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device(device):
        one = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    config.num_hidden_layers = layers
    first = "model.layers.0."
    rest = {n: p for n, p in one.state_dict().items() if not n.startswith(first)}
    where = dict.fromkeys(rest, "rest.safetensors")
    save_file({n: p.cpu() for n, p in rest.items()}, folder / "rest.safetensors")
    for i in range(layers):
        tensors = {}
        for name, parameter in one.model.layers[0].named_parameters():
            path = f"model.layers.{i}.{name}"
            tensors[path] = parameter.detach()
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=config.initializer_range)
                tensors |= quantized(path, parameter.detach())
        file = f"layer-{i}.safetensors"
        where |= dict.fromkeys(tensors, file)
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / file)
    text = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(text)
    config.quantization_config = models.quantization_config().to_dict()
    config.dtype = torch.float16
    config.save_pretrained(folder)


def quantized(path: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors that a quantized repository has for a weight."""
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True
    )
    parts = state.as_dict(packed=True)
    return {path: packed, **{f"{path}.{name}": part for name, part in parts.items()}}


def card() -> dict[str, Any]:
    """Return the GPU's name, and the versions of the packages that compute on it."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"card": torch.cuda.get_device_name(), "versions": found}


def kind_of(kernel: str) -> str:
    """Return the entry of KINDS that a kernel's name belongs to."""
    name = kernel.lower()
    found = (k for k, words in KINDS.items() if any(word in name for word in words))
    return next(found, "other")


def append(name: str, row: dict[str, Any]) -> None:
    """Append a row to a file of bench/results."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / name
    earlier = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*earlier, row], indent=1) + "\n")
