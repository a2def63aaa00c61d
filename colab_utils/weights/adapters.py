"""Read a saved LoRA adapter: the update that it adds to each weight of the base."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils.weights.shards import DTYPES, all_entries

if TYPE_CHECKING:
    import torch

# LoRA options that change the formula in ways that `Update` does not cover.
UNSUPPORTED = (
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
)
# Initializations of A and B that do not change the base's weights.
INITS = (True, False, None, "gaussian", "orthogonal", "eva")
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Update:
    """The update of a weight W (out, in): scale B A, with A (r, in) and B (out, r).

    For DoRA (Liu et al. 2024), `lengths` (out,) holds the norm of each updated row.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    lengths: torch.Tensor | None = None


def read_adapter(folder: Path) -> tuple[dict[str, Update], dict[str, torch.Tensor]]:
    """Return the updates by weight name, and the weights that the adapter replaces.

    Raises FileNotFoundError for a folder without an adapter, and ValueError for files
    that can't be read and for a kind of adapter that can't be merged here.
    """
    config, tensors = _read(folder)
    unsupported = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":  # PEFT trains biases, may not save them
        unsupported.append("bias")
    if config.get("init_lora_weights") not in INITS:
        unsupported.append(f"init_lora_weights={config['init_lora_weights']}")
    updates: dict[str, Update] = {}
    for name in list(tensors):
        layer, _, kind = name.rpartition(".lora_")
        if kind == "A.weight" and f"{layer}.lora_B.weight" in tensors:
            a, b = tensors.pop(name), tensors.pop(f"{layer}.lora_B.weight")
        elif kind == "embedding_A" and f"{layer}.lora_embedding_B" in tensors:
            # An embedding's weight is the transpose of a linear layer's.
            b, a = tensors.pop(name).T, tensors.pop(f"{layer}.lora_embedding_B").T
        else:
            continue
        tensors.pop(f"{layer}.base_layer.weight", None)  # a copy of the base's weight
        lengths = tensors.pop(f"{layer}.lora_magnitude_vector", None)
        lengths = None if lengths is None else lengths.float()
        if lengths is not None and (kind == "embedding_A" or len(lengths) != len(b)):
            # DoRA of an embedding has a length for each column.
            unsupported.append(f"DoRA of {layer}")
        scale = _scale(config, layer, rank=len(a))
        updates[f"{layer}.weight"] = Update(a.float(), b.float(), scale, lengths)
    replaced, other = _replaced(config, tensors)
    unsupported += other[:1]
    if unsupported or not updates:
        raise _cannot_merge(", ".join(unsupported) or "it is empty")
    return updates, replaced


def _scale(config: dict[str, Any], layer: str, rank: int) -> float:
    """Return alpha / r of a layer, or alpha / sqrt(r) for rsLoRA."""
    # PEFT takes the first pattern that matches the end of the layer's name.
    patterns = (config.get("alpha_pattern") or {}).items()
    alphas = (a for p, a in patterns if re.match(rf"(.*\.)?({p})$", layer))
    alpha = next(alphas, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _replaced(
    config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the fully trained weights, and the names of all other tensors."""
    modules = (*(config.get("modules_to_save") or ()), "embed_tokens", "lm_head")
    replaced = {name: t for name, t in tensors.items() if _within(name, modules)}
    other = [name for name in tensors if name not in replaced]
    for name in list(replaced):  # PEFT saves these copies of resized embeddings, too
        if name.endswith((".modules_to_save.weight", ".original_module.weight")):
            del replaced[name]
    return replaced, other


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the tensors of a LoRA adapter, named as in the base."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter. 02_finetune_qlora writes one with METHOD = "
            '"qlora" or "lora"; after "full" there is nothing to merge.'
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if (kind := config["peft_type"]) == "LORA":
            float(config["lora_alpha"])
            tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        old = " (PEFT's older adapter_model.bin is not read: load it and save it again)"
        raise ValueError(
            f"The adapter in {folder} can't be read: {type(error).__name__}: {error}"
            + (old if (folder / "adapter_model.bin").exists() else "")
        ) from error
    if kind != "LORA":
        raise _cannot_merge(kind)
    return config, {n.removeprefix("base_model.model."): t for n, t in tensors.items()}


def _cannot_merge(reason: str) -> ValueError:
    return ValueError(
        f"Can't merge this adapter: {reason}. Supported are LoRA, DoRA, and fully "
        "trained layers next to them (modules_to_save)."
    )


def _within(name: str, modules: tuple[str, ...]) -> bool:
    """Return whether a tensor is in a module whose name ends with one of `modules`."""
    parts = name.split(".")
    parents = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(parent.endswith(modules) for parent in parents)


def check_fit(
    shards: list[Path], updates: dict[str, Update], replaced: dict[str, torch.Tensor]
) -> None:
    """Raise ValueError unless the base holds every adapted weight in the same shape."""
    stored = all_entries(shards)
    adapted = {*updates, *replaced}
    if {EMBEDDINGS, HEAD} & adapted and len({EMBEDDINGS, HEAD} & set(stored)) == 1:
        raise ValueError(
            "The base's head is its embeddings (they are tied), and this adapter has "
            f"changed {' and '.join(sorted({EMBEDDINGS, HEAD} & adapted))}: the merged "
            "model would compute other logits. Train without these layers, or on an "
            "untied base."
        )
    missing = sorted(adapted - set(stored))
    if missing:
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}): was the adapter trained on this base?"
        )
    shapes: dict[str, tuple[int, ...]]
    shapes = {name: (len(u.b), u.a.shape[1]) for name, u in updates.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in replaced.items()}
    for name, shape in shapes.items():
        dtype, in_base = stored[name]["dtype"], tuple(stored[name]["shape"])
        if dtype not in DTYPES:
            raise ValueError(
                f"{name} is stored as {dtype} in the base: merge into the base's "
                "float16 or bfloat16 weights, not into quantized ones."
            )
        if in_base != shape:
            resized = name in (EMBEDDINGS, HEAD) and in_base[1:] == shape[1:]
            reason = "an adapter with another number of tokens can't be merged here."
            raise ValueError(
                f"{name} is {in_base} in the base, but {shape} in the adapter: "
                + (reason if resized else "was the adapter trained on this base?")
            )
