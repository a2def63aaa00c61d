"""Compare a merged model with base and adapter, one decoder layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import families, runtime
from colab_utils.shape import Shape
from colab_utils.weights import nf4
from colab_utils.weights.adapter_fit import read_for_base
from colab_utils.weights.adapters import EMBEDDINGS
from colab_utils.weights.shards import find_shards
from colab_utils.weights.stored_model import StoredModel
from colab_utils.weights.verifying_whole import compare_whole

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedConfig

    from colab_utils.weights.stored_model import AddUpdate

ROWS = 1024  # rows of the head whose logits are computed at a time
# Config fields that may differ between two models that compute the same.
IRRELEVANT = {"_name_or_path", "architectures", "dtype", "transformers_version"}
IRRELEVANT |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class Comparison:
    """How far a merged model is from base with adapter, over all positions.

    `difference` is |merged - adapted| / |adapted| of the logits, `same_top_1` the share
    of positions with the same top-1 token, `layers` the relative difference of each
    decoder layer's output.
    """

    difference: float
    same_top_1: float
    layers: list[float]


def verify(
    base: Path | str,
    adapter: Path | str,
    merged: Path | str,
    conversations: list[list[int]],
    weights: str = "original",
) -> Comparison:
    """Run token ids through base with adapter and through the merged model.

    This computes in float32. For the families in `colab_utils.families` it holds one
    decoder layer at a time: 1 GiB for Llama 2 7B. For others it loads each model, and
    prints a line. Pass the same `weights` as to `merge`. Raises ValueError for a merged
    model whose config differs from the base's in a way that changes the logits, for
    conversations without tokens or longer than a sliding window, and for a model that
    must be loaded and is too large.
    """
    import torch
    from transformers import AutoConfig

    base, adapter, merged = Path(base), Path(adapter), Path(merged)
    shards = find_shards(base)
    updates, replaced = read_for_base(adapter, shards)
    dequantize = weights == "dequantized"
    quantized_in = nf4.trained_dtype(shards, adapter) if dequantize else None
    config, other = (  # "sdpa" without a mask is causal
        AutoConfig.from_pretrained(
            folder, attn_implementation="sdpa", trust_remote_code=False
        )
        for folder in (base, merged)
    )
    _check_alike(config, other, replaced)
    conversations = [ids for ids in conversations if len(ids)]
    if not conversations:
        raise ValueError("There are no tokens to compare on: is the test file empty?")
    if config.model_type not in families.FAMILIES:
        found = compare_whole(base, adapter, merged, conversations, quantized_in)
        return Comparison(*found)
    _check_lengths(config, conversations)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapted = StoredModel(base, device, updates, replaced, quantized_in)
    models = (adapted, StoredModel(merged, device))
    with torch.inference_mode():
        states = [[model.embedded(ids) for ids in conversations] for model in models]
        layers = _run_layers(config, models, states)
        return Comparison(*_compare_logits(other, models, states), layers)


def _check_alike(
    base_config: PreTrainedConfig,
    merged_config: PreTrainedConfig,
    replaced: dict[str, torch.Tensor],
) -> None:
    """Raise ValueError unless both models have configs that compute the same."""
    base, merged = base_config.to_dict(), merged_config.to_dict()
    if EMBEDDINGS in replaced:
        base["vocab_size"] = len(replaced[EMBEDDINGS])
    for name in sorted((base.keys() | merged.keys()) - IRRELEVANT):
        if base.get(name) != merged.get(name):
            raise ValueError(
                f"The merged model computes differently: its config says {name} = "
                f"{merged.get(name)}, the base's {base.get(name)}. Merge again."
            )


def _check_lengths(config: PreTrainedConfig, conversations: list[list[int]]) -> None:
    window, longest = Shape.from_config(config).window, max(map(len, conversations))
    if window is not None and longest > window:
        raise ValueError(
            f"A conversation has {longest:,} tokens, but the attention of this model "
            f"sees only the last {window:,}, which is not computed here: compare on "
            "shorter conversations."
        )


def _run_layers(
    config: PreTrainedConfig,
    models: tuple[StoredModel, ...],
    states: list[list[torch.Tensor]],
) -> list[float]:
    """Run both models' states through all layers; return the relative differences."""
    import torch

    device = models[0].device
    make_layer, make_rotary = (
        _class_of(config, name) for name in ("DecoderLayer", "RotaryEmbedding")
    )
    rotary = make_rotary(config).to(device)
    differences = []
    for i in runtime.progress(range(config.num_hidden_layers), "comparing layers"):
        with torch.device("meta"):
            layer = make_layer(config, i).requires_grad_(False).eval()
        layer = layer.to_empty(device=device)
        for model, hidden in zip(models, states, strict=True):
            hooks = _load(layer, model, f"model.layers.{i}.")
            for n, state in enumerate(hidden):
                positions = torch.arange(state.shape[1], device=device)[None]
                cos_sin = rotary(state, position_ids=positions)
                hidden[n] = layer(state, position_embeddings=cos_sin)
            for hook in hooks:
                hook.remove()
        adapted, merged = (torch.cat(hidden, 1) for hidden in states)
        differences.append(((merged - adapted).norm() / adapted.norm()).item())
    return differences


def _class_of(config: PreTrainedConfig, name: str) -> Any:
    """Return a class of transformers' module for the model's family."""
    family = config.model_type
    prefix = families.FAMILIES[family].prefix
    return getattr(families.modeling(family), prefix + name)


def _load(
    layer: torch.nn.Module, model: StoredModel, prefix: str
) -> list[RemovableHandle]:
    """Fill a decoder layer with a model's weights; return the hooks of its adapter."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(model.weight(prefix + name).to(model.device))
    hooks = []
    for name, module in layer.named_modules():
        if f"{prefix}{name}.weight" in model.updates:
            weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
            add = model.add_update(
                f"{prefix}{name}.weight",
                weight,
                slice(None),
                0.0 if bias is None else bias,
            )
            if add:
                hooks.append(module.register_forward_hook(_hook(add)))
    return hooks


def _hook(add_update: AddUpdate) -> Callable[..., torch.Tensor]:
    def hook(
        _: torch.nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor
    ) -> torch.Tensor:
        return add_update(inputs[0], out)

    return hook


def _compare_logits(
    config: PreTrainedConfig,
    models: tuple[StoredModel, ...],
    states: list[list[torch.Tensor]],
) -> tuple[float, float]:
    """Return the logits' relative difference and the share of equal top-1 tokens."""
    import torch

    make_norm = _class_of(config, "RMSNorm")
    hidden = []
    for model, given in zip(models, states, strict=True):
        norm = make_norm(config.hidden_size, config.rms_norm_eps).to(model.device)
        norm.weight.copy_(model.weight("model.norm.weight"))
        hidden.append(norm(torch.cat(given, 1)[0]))
    # The largest logit of each position so far, and its token.
    best = [torch.full((len(h),), -torch.inf, device=h.device) for h in hidden]
    top_1 = [torch.zeros_like(b, dtype=torch.long) for b in best]
    difference = total = 0.0
    for start in range(0, config.vocab_size, ROWS):
        rows = slice(start, start + ROWS)
        logits = [m.logits(rows, h) for m, h in zip(models, hidden, strict=True)]
        difference += (logits[1] - logits[0]).double().square().sum().item()
        total += logits[0].double().square().sum().item()
        for i, (value, index) in enumerate(scores.max(-1) for scores in logits):
            better = value > best[i]
            best[i] = torch.where(better, value, best[i])
            top_1[i] = torch.where(better, start + index, top_1[i])
    same_top_1 = (top_1[0] == top_1[1]).float().mean().item()
    return math.sqrt(difference / total), same_top_1
