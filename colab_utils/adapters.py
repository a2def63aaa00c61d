"""Read a saved LoRA adapter: what it adds to which weight of the base model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

    Raises FileNotFoundError for a folder without an adapter and ValueError for a kind
    of adapter that can't be merged here.
    """
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter. 02_finetune_qlora makes one with METHOD = "
            '"qlora" or "lora"; after "full" there is nothing to merge.'
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    odd = [name for name in UNSUPPORTED if config.get(name)]
    if config["peft_type"] != "LORA":
        odd.insert(0, config["peft_type"])
    if config.get("bias", "none") != "none":  # PEFT trains it, and may not save it
        odd.append("bias")
    if config.get("init_lora_weights") not in INITS:
        odd.append(f"init_lora_weights={config['init_lora_weights']}")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {n.removeprefix("base_model.model."): t for n, t in tensors.items()}
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
        update = Update(a.float(), b.float(), alpha / root, lengths)
        updates[f"{stem}.weight"] = update
    saved = tuple(config.get("modules_to_save") or ())
    replaced = {n: t for n, t in tensors.items() if n.split(".")[-2:-1][0] in saved}
    odd += [name for name in tensors if name not in replaced][:1]
    if odd or not updates:
        kind = ", ".join(odd) or "it is empty"
        raise ValueError(
            f"Can't merge this adapter: {kind}. What can be: LoRA and DoRA, and layers "
            "that were trained as a whole beside them."
        )
    return updates, replaced
