"""Compare a merged model with base and adapter by loading each model as a whole."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils.memory import free_ram
from colab_utils.weights import nf4
from colab_utils.weights.adapter_fit import read_for_base
from colab_utils.weights.adapters import EMBEDDINGS
from colab_utils.weights.shards import all_entries, find_shards
from colab_utils.weights.vocabulary import resize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GIB = 2**30
MARGIN = 1.2  # memory next to the weights: activations and logits


def compare_whole(
    base: Path,
    adapter: Path,
    merged: Path,
    conversations: list[list[int]],
    quantized_in: torch.dtype | None,
) -> tuple[float, float, list[float]]:
    """Return the difference of the logits, the share of equal top-1 tokens, and the
    difference of each layer's output.

    PEFT applies the adapter. One model after the other is loaded in float32. Raises
    ValueError when it fits neither the GPU nor the RAM.
    """
    import torch

    device = _device_for(base)
    found = []
    for load in (
        lambda: _adapted(base, adapter, device, quantized_in),
        lambda: _load(merged, device),
    ):
        with torch.inference_mode():
            found.append(_run(load(), conversations))
        gc.collect()
    (logits, layers), (other_logits, other_layers) = found
    same = (logits.argmax(-1) == other_logits.argmax(-1)).float().mean().item()
    pairs = zip(layers, other_layers, strict=True)
    differences = [_difference(one, other) for one, other in pairs]
    return _difference(logits, other_logits), same, differences


def _device_for(base: Path) -> str:
    """Return the device with enough free memory, and print that models are loaded."""
    import torch

    entries = all_entries(find_shards(base)).values()
    needed = MARGIN * 4 * sum(math.prod(entry["shape"]) for entry in entries)
    free = {"cpu": free_ram()}
    if torch.cuda.is_available():
        free = {"cuda": torch.cuda.mem_get_info()[0], **free}
    line = (
        "models of this family are not compared a layer at a time, so both are loaded "
        f"in float32, one after the other: {needed / GIB:.1f} GiB"
    )
    for device, memory in free.items():
        if needed < memory:
            print(f"{line} on the {device}")
            return device
    available = ", ".join(f"{m / GIB:.1f} GiB on the {d}" for d, m in free.items())
    raise ValueError(
        f"The models can't be compared: {line}, and there are {available}. Use a "
        "machine with more memory, or go on without this proof."
    )


def _load(folder: Path, device: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=device, trust_remote_code=False
    )
    return model.eval()


def _adapted(
    base: Path, adapter: Path, device: str, quantized_in: torch.dtype | None
) -> Any:
    """Return the base with its adapter, applied by PEFT."""
    from peft import PeftModel

    model = _load(base, device)
    if quantized_in:
        for name, weight in model.named_parameters():
            if nf4.QUANTIZED.fullmatch(name):
                weight.copy_(nf4.dequantized(weight, quantized_in))
    _, replaced = read_for_base(adapter, find_shards(base))
    if EMBEDDINGS in replaced:
        resize(model, len(replaced[EMBEDDINGS]))
    return PeftModel.from_pretrained(model, adapter).eval()


def _run(
    model: Any, conversations: list[list[int]]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits of all positions, and the output of each layer."""
    import torch

    logits, layers = [], []
    for ids in conversations:
        given = torch.tensor([ids], device=model.device)
        out = model(input_ids=given, output_hidden_states=True, use_cache=False)
        logits.append(out.logits[0].float().cpu())
        layers.append([state[0].float().cpu() for state in out.hidden_states[1:]])
    return torch.cat(logits), [torch.cat(parts) for parts in zip(*layers, strict=True)]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return |other - one| / |one|."""
    return ((other - one).norm() / one.norm()).item()
