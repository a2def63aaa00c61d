"""Read a saved LoRA adapter: what it adds to which weight of the base model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils.weights import shards as storage

if TYPE_CHECKING:
    import torch

# Options of LoRA that change the formula in ways that are not written here.
UNSUPPORTED = (
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
)
# Starts of A and B that leave the base's weights as they are; others change them.
INITS = (True, False, None, "gaussian", "orthogonal", "eva")
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Update:
    """What an adapter adds to a weight W (out, in): scale B A, A (r, in), B (out, r).

    With DoRA (Liu et al. 2024) each row is then given the length in `lengths` (out,).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    lengths: torch.Tensor | None = None


def read_adapter(folder: Path) -> tuple[dict[str, Update], dict[str, torch.Tensor]]:
    """The update of each adapted weight by its name, and the weights that are replaced.

    Raises FileNotFoundError for a folder without an adapter and ValueError for files
    that can't be read, or a kind of adapter that can't be merged here.
    """
    config, tensors = _read(folder)
    odd = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":  # PEFT trains it, and may not save it
        odd.append("bias")
    if config.get("init_lora_weights") not in INITS:
        odd.append(f"init_lora_weights={config['init_lora_weights']}")
    alphas = config.get("alpha_pattern") or {}
    updates: dict[str, Update] = {}
    for name in list(tensors):
        stem, _, kind = name.rpartition(".lora_")
        if kind == "A.weight" and f"{stem}.lora_B.weight" in tensors:
            a, b = tensors.pop(name), tensors.pop(f"{stem}.lora_B.weight")
        elif kind == "embedding_A" and f"{stem}.lora_embedding_B" in tensors:
            # the rows of an embedding are what a linear layer has as columns
            b, a = tensors.pop(name).T, tensors.pop(f"{stem}.lora_embedding_B").T
        else:
            continue
        tensors.pop(f"{stem}.base_layer.weight", None)  # saved as it was
        # PEFT takes the first pattern that is the end of the layer's name
        fits = (v for k, v in alphas.items() if re.match(rf"(.*\.)?({k})$", stem))
        alpha = next(fits, config["lora_alpha"])
        root = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
        lengths = tensors.pop(f"{stem}.lora_magnitude_vector", None)
        lengths = None if lengths is None else lengths.float()
        if lengths is not None and (kind == "embedding_A" or len(lengths) != len(b)):
            odd.append(f"DoRA of {stem}")  # of an embedding: a length for each column
        update = Update(a.float(), b.float(), alpha / root, lengths)
        updates[f"{stem}.weight"] = update
    saved = (*(config.get("modules_to_save") or ()), "embed_tokens", "lm_head")
    replaced = {name: t for name, t in tensors.items() if _within(name, saved)}
    odd += [name for name in tensors if name not in replaced][:1]
    for name in list(replaced):  # of resized embeddings PEFT saves these copies, too
        if name.endswith((".modules_to_save.weight", ".original_module.weight")):
            del replaced[name]
    if odd or not updates:
        raise _refusal(", ".join(odd) or "it is empty")
    return updates, replaced


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The files of a LoRA adapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter. 02_finetune_qlora makes one with METHOD = "
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
        raise _refusal(kind)
    return config, {n.removeprefix("base_model.model."): t for n, t in tensors.items()}


def _refusal(kind: str) -> ValueError:
    return ValueError(
        f"Can't merge this adapter: {kind}. What can be: LoRA and DoRA, and layers "
        "that were trained as a whole beside them."
    )


def _within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor is in a module whose name ends like one of `modules`."""
    parts = name.split(".")
    stems = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(stem.endswith(modules) for stem in stems)


def check_fit(
    shards: list[Path], updates: dict[str, Update], replaced: dict[str, torch.Tensor]
) -> None:
    """Raise ValueError unless all that is adapted is in the base, in the same shape."""
    found = dict(item for shard in shards for item in storage.tensors_of(shard))
    adapted = {*updates, *replaced}
    if {EMBEDDINGS, HEAD} & adapted and len({EMBEDDINGS, HEAD} & set(found)) == 1:
        raise ValueError(
            "The base's head is its embeddings (they are tied), and this adapter has "
            f"changed {' and '.join(sorted({EMBEDDINGS, HEAD} & adapted))}: merged, it "
            "would be another model. Train without these layers, or on an untied base."
        )
    missing = sorted(adapted - set(found))
    if missing:
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}): is it the base that the adapter was trained on?"
        )
    wanted = {n: (u.b.shape[0], u.a.shape[1]) for n, u in updates.items()}
    wanted |= {name: tuple(tensor.shape) for name, tensor in replaced.items()}
    for name, shape in wanted.items():
        dtype, there = found[name]["dtype"], tuple(found[name]["shape"])
        if dtype not in storage.DTYPES:
            raise ValueError(
                f"{name} is stored as {dtype} in the base: merge into the base's "
                "16-bit weights, not into quantised ones."
            )
        if there != shape:
            resized = name in (EMBEDDINGS, HEAD) and there[1:] == shape[1:]
            why = "with another number of tokens it can't be merged here"
            raise ValueError(
                f"{name} is {there} in the base, the adapter wants {shape}: "
                + (why if resized else "is it the base that it was trained on?")
            )
