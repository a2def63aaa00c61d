"""Read a saved LoRA adapter: the update that it adds to each weight of the base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import limits

if TYPE_CHECKING:
    import torch

# LoRA options that change the formula in ways that `Update` does not cover.
UNSUPPORTED = ("fan_in_fan_out", "layer_replication", "alora_invocation_tokens")
# Initializations of A and B that do not change the base's weights.
INITS = (True, False, None, "gaussian", "orthogonal", "eva")
# The name of the adapter, after the name of a part of it.
DEFAULT = re.compile(
    r"(lora_(?:embedding_)?[AB]|lora_magnitude_vector|modules_to_save"
    r"|trainable_tokens_(?:delta|original))\.default"
)
# The ends of names: the trained rows of a table, and the table that they belong to.
ROWS = ".token_adapter.trainable_tokens_delta"
WHOLE = ".token_adapter.base_layer.weight"
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


@dataclass(frozen=True)
class Rows:
    """The trained rows of a table: token `ids[i]` has the row `values[i]`."""

    ids: list[int]
    values: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """The changes that an adapter makes to its base, by the names of the weights.

    `replaced` holds weights that were trained fully or resized, `copies` those of the
    base's weights that were saved with the adapter, and `rows` the trained rows of a
    weight (PEFT's `trainable_token_indices`).
    """

    updates: dict[str, Update]
    replaced: dict[str, torch.Tensor]
    copies: dict[str, torch.Tensor]
    rows: dict[str, Rows]


def read_adapter(
    folder: Path | str,
) -> tuple[dict[str, Update], dict[str, torch.Tensor]]:
    """Return the updates by weight name, and the weights that the adapter replaces.

    Trained rows of a weight are in neither: without the base they are no whole weight.
    Raises FileNotFoundError for a folder without an adapter, and ValueError for files
    that can't be read and for a kind of adapter that can't be merged here.
    """
    found = parse(Path(folder))
    return found.updates, found.replaced


def parse(folder: Path) -> Adapter:
    """Return all that an adapter's files hold; raise the errors of `read_adapter`."""
    config, tensors = _read(folder)
    check_patterns(config, {name.partition(".lora_")[0] for name in tensors})
    unsupported = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":  # PEFT trains biases, may not save them
        unsupported.append("bias")
    if config.get("init_lora_weights") not in INITS:
        unsupported.append(f"init_lora_weights={config['init_lora_weights']}")
    updates: dict[str, Update] = {}
    rows, copies = _rows(config, tensors)
    for name in list(tensors):
        layer, _, kind = name.rpartition(".lora_")
        if kind == "A.weight" and f"{layer}.lora_B.weight" in tensors:
            a, b = tensors.pop(name), tensors.pop(f"{layer}.lora_B.weight")
        elif kind == "embedding_A" and f"{layer}.lora_embedding_B" in tensors:
            # An embedding's weight is the transpose of a linear layer's.
            b, a = tensors.pop(name).T, tensors.pop(f"{layer}.lora_embedding_B").T
        else:
            continue
        if f"{layer}.base_layer.weight" in tensors:
            copies[f"{layer}.weight"] = tensors.pop(f"{layer}.base_layer.weight")
        lengths = tensors.pop(f"{layer}.lora_magnitude_vector", None)
        lengths = None if lengths is None else lengths.float()
        if lengths is not None and (kind == "embedding_A" or len(lengths) != len(b)):
            # DoRA of an embedding has a length for each column.
            unsupported.append(f"DoRA of {layer}")
        scale = _scale(config, layer, rank=len(a))
        updates[f"{layer}.weight"] = Update(a.float(), b.float(), scale, lengths)
    replaced, other = _replaced(config, tensors)
    unsupported += other[:1]
    unsupported += [
        f"LoRA and trained rows of {name}" for name in updates if name in rows
    ]
    if unsupported or not (updates or rows):
        raise _cannot_merge(", ".join(unsupported) or "it is empty")
    return Adapter(updates, replaced, copies, rows)


def _rows(
    config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, Rows], dict[str, torch.Tensor]]:
    """Take the trained rows out of the tensors, and the tables that they belong to."""
    rows: dict[str, Rows] = {}
    tables: dict[str, torch.Tensor] = {}
    given = config.get("trainable_token_indices") or {}
    ids_of = given if isinstance(given, dict) else {"": given}
    for name in list(tensors):
        layer = name.removesuffix(ROWS).removesuffix(WHOLE)
        if name.endswith(WHOLE):  # PEFT saves it if the table was resized
            tables[f"{layer}.weight"] = tensors.pop(name)
        elif name.endswith(ROWS):
            found = [ids for end, ids in ids_of.items() if layer.endswith(end)]
            found += ids_of.values()  # a tied head has the rows of the embeddings
            rows[f"{layer}.weight"] = Rows(found[0], tensors.pop(name))
        elif name.endswith(".trainable_tokens_original"):
            del tensors[name]
    return rows, tables


def _scale(config: dict[str, Any], layer: str, rank: int) -> float:
    """Return alpha / r of a layer, or alpha / sqrt(r) for rsLoRA."""
    # PEFT takes the first pattern that matches the end of the layer's name.
    patterns = (config.get("alpha_pattern") or {}).items()
    alphas = (a for p, a in patterns if re.match(rf"(.*\.)?({p})$", layer))
    alpha = next(alphas, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_patterns(config: dict[str, Any], names: Iterable[str]) -> None:
    """Match an adapter's patterns with names of modules, as PEFT does later.

    Raises ValueError for a pattern that is no regular expression, and TimeoutError if
    they take more than 10 s: a pattern such as "(a+)+$" may need years.
    """
    given = [config.get("target_modules"), config.get("exclude_modules")]
    patterns = [pattern for pattern in given if isinstance(pattern, str)]
    for field in ("alpha_pattern", "rank_pattern"):
        patterns += [rf"(.*\.)?({end})$" for end in config.get(field) or {}]
    with limits.seconds(10, "Matching the patterns in adapter_config.json"):
        for pattern in patterns:
            try:
                matches = re.compile(pattern).match
            except re.error as error:
                raise ValueError(
                    f"adapter_config.json has the pattern {pattern!r}, which is no "
                    f"regular expression: {error}."
                ) from error
            for name in names:
                matches(name)


def _replaced(
    config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the fully trained weights, and the names of all other tensors."""
    modules = (*(config.get("modules_to_save") or ()), "embed_tokens", "lm_head")
    replaced = {name: t for name, t in tensors.items() if _within(name, modules)}
    other = [name for name in tensors if name not in replaced]
    for name in list(replaced):  # PEFT saves these copies of resized embeddings, too
        module, trained, end = name.rpartition(".modules_to_save.")
        if trained:
            replaced.setdefault(f"{module}.{end}", replaced.pop(name))
        elif ".original_module." in name:
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
    return config, {_plain(name): tensor for name, tensor in tensors.items()}


def _plain(name: str) -> str:
    """Return a tensor's name as PEFT saves it: of a module as in the base.

    A state dict that was saved without PEFT also names the adapter, "default".
    """
    name = DEFAULT.sub(r"\1", name.removeprefix("base_model.model."))
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def _cannot_merge(reason: str) -> ValueError:
    return ValueError(
        f"Can't merge this adapter: {reason}. Supported are LoRA, DoRA, and next to "
        "them fully trained layers (modules_to_save) and trained rows of embeddings "
        "and head (trainable_token_indices)."
    )


def _within(name: str, modules: tuple[str, ...]) -> bool:
    """Return whether a tensor is in a module whose name ends with one of `modules`."""
    parts = name.split(".")
    parents = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(parent.endswith(modules) for parent in parents)
