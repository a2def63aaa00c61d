"""Compare a merged model with base and adapter, a layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime
from colab_utils.weights import nf4
from colab_utils.weights import shards as storage
from colab_utils.weights.adapters import EMBEDDINGS, HEAD, Update, read_adapter

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    Layer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

ROWS = 1024  # of the head and its logits, at a time
# What two configs may differ in and compute the same.
OTHERWISE = {"_name_or_path", "architectures", "dtype", "transformers_version"}
OTHERWISE |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class Comparison:
    """How far a merged model is from base and adapter, over all positions.

    `difference` is |merged - apart| / |apart| of the logits, `same` the share of
    positions with the same favourite token, `layers` the relative difference of what
    each decoder layer puts out.
    """

    difference: float
    same: float
    layers: list[float]


class _Model:
    """A model's weights, read from its files when they are used, with its adapter."""

    def __init__(
        self,
        folder: Path,
        device: str,
        updates: dict[str, Update] | None = None,
        replaced: dict[str, torch.Tensor] | None = None,
        grid: torch.dtype | None = None,
    ) -> None:
        shards = storage.find_shards(folder)
        self.files = {name: s for s in shards for name, _ in storage.tensors_of(s)}
        self.folder, self.device, self.grid = folder, device, grid
        self.updates, self.replaced = updates or {}, replaced or {}

    def stored(self, name: str) -> torch.Tensor:
        """A tensor as the file has it; only the pages that are used are read."""
        from safetensors import safe_open

        if name not in self.files:
            raise ValueError(f"{self.folder} lacks {name}: merge again.")
        with safe_open(self.files[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        if self.grid and nf4.QUANTISED.fullmatch(name):
            return nf4.dequantised(tensor, self.grid)
        return tensor

    def weight(self, name: str) -> torch.Tensor:
        """The same, or what the adapter has in its place."""
        return self.replaced[name] if name in self.replaced else self.stored(name)

    def embedded(self, ids: list[int]) -> torch.Tensor:
        """The embeddings of token ids, (1, tokens, width)."""
        name = EMBEDDINGS
        out = self.weight(name)[ids].float()
        if name in self.updates:
            update = self.updates[name]
            out += update.scale * update.b[ids] @ update.a
        return out[None].to(self.device)

    def added(self, name: str, weight: torch.Tensor, rows: slice) -> Layer | None:
        """From x and W x what the adapted layer puts out, W x + scale B (A x).

        `weight` are the `rows` of W. This is how PEFT computes, not how `merging` does.
        """
        import torch

        if name not in self.updates:
            return None
        update = self.updates[name]
        a, b = update.a.to(self.device), update.b[rows].to(self.device)
        length = 1.0
        if update.lengths is not None:
            whole = torch.addmm(weight, b, a, alpha=update.scale)
            length = update.lengths[rows].to(self.device) / whole.norm(dim=1)
        return lambda x, out: length * (out + update.scale * (x @ a.T @ b.T))

    def head(self, rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of some tokens, (positions, rows)."""
        name = HEAD
        tied = name not in self.files and name not in self.replaced
        stored = self.stored(EMBEDDINGS) if tied else self.weight(name)
        weight = stored[rows].to(self.device).float()
        change, out = self.added(name, weight, rows), hidden @ weight.T
        return change(hidden, out) if change else out


def verify(
    base: Path,
    adapter: Path,
    merged: Path,
    conversations: list[list[int]],
    weights: str = "original",
) -> Comparison:
    """Run token ids through base with adapter and through the merged model.

    Computes in float32, and holds one decoder layer at a time: 1 GiB for Llama 2 7B.
    `weights` is what `merging.merge` was given. Raises ValueError for another
    architecture than Llama, for a merged model whose config is another than the base's,
    and for conversations without tokens.
    """
    import torch
    from transformers import AutoConfig

    base, adapter, merged = Path(base), Path(adapter), Path(merged)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    updates, replaced = read_adapter(adapter)
    dequantized, shards = weights == "dequantized", storage.find_shards(base)
    grid = nf4.trained_dtype(shards, adapter) if dequantized else None
    models = (
        _Model(base, device, updates, replaced, grid),
        _Model(merged, device),
    )
    # Without a mask "sdpa" is causal.
    configs = [
        AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        for folder in (base, merged)
    ]
    _check_alike(configs)
    config = configs[0]
    conversations = [ids for ids in conversations if len(ids)]
    if not conversations:
        raise ValueError("There are no tokens to compare on: is the test file empty?")
    with torch.inference_mode():
        states = [[model.embedded(ids) for ids in conversations] for model in models]
        layers = _run_layers(config, models, states)
        return Comparison(*_compare_logits(config, models, states), layers)


def _check_alike(configs: list[LlamaConfig]) -> None:
    """Raise ValueError unless base and merged model are Llamas that compute alike."""
    base, merged = (config.to_dict() for config in configs)
    if base["model_type"] != "llama":
        raise ValueError(
            f"The base is a {base['model_type']} model, and only Llama is compared a "
            "layer at a time. Load both models with models.load_model instead."
        )
    for name in sorted((base.keys() | merged.keys()) - OTHERWISE):
        if base.get(name) != merged.get(name):
            raise ValueError(
                f"The merged model computes otherwise: its config says {name} = "
                f"{merged.get(name)}, the base's {base.get(name)}. Merge again."
            )


def _run_layers(
    config: LlamaConfig, models: tuple[_Model, ...], states: list[list[torch.Tensor]]
) -> list[float]:
    """Take the states of both models through all layers; their relative differences."""
    import torch
    from transformers.models.llama import modeling_llama as llama

    device = models[0].device
    with torch.device("meta"):
        layer = llama.LlamaDecoderLayer(config, 0).requires_grad_(False).eval()
    layer = layer.to_empty(device=device)
    rotary = llama.LlamaRotaryEmbedding(config).to(device)
    found = []
    for i in runtime.progress(range(config.num_hidden_layers), "comparing layers"):
        for model, hidden in zip(models, states, strict=True):
            hooks = _load(layer, model, f"model.layers.{i}.")
            for n, state in enumerate(hidden):
                positions = torch.arange(state.shape[1], device=device)[None]
                turn = rotary(state, position_ids=positions)
                hidden[n] = layer(state, position_embeddings=turn)
            for hook in hooks:
                hook.remove()
        apart, merged = (torch.cat(hidden, 1) for hidden in states)
        found.append(((merged - apart).norm() / apart.norm()).item())
    return found


def _load(layer: LlamaDecoderLayer, model: _Model, stem: str) -> list[Any]:
    """Fill a decoder layer with a model's weights; the hooks that are its adapter."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(model.weight(stem + name).to(model.device))
    hooks = []
    for name, module in layer.named_modules():
        if f"{stem}{name}.weight" in model.updates:
            change = model.added(f"{stem}{name}.weight", module.weight, slice(None))
            hooks.append(module.register_forward_hook(_hook(change)))
    return hooks


def _hook(change: Layer) -> Callable[..., torch.Tensor]:
    def hook(_: Any, given: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return change(given[0], out)

    return hook


def _compare_logits(
    config: LlamaConfig, models: tuple[_Model, ...], states: list[list[torch.Tensor]]
) -> tuple[float, float]:
    """Relative difference of the logits, and the share of equal favourites."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    hidden = []
    for model, given in zip(models, states, strict=True):
        norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps).to(model.device)
        norm.weight.copy_(model.weight("model.norm.weight"))
        hidden.append(norm(torch.cat(given, 1)[0]))
    # The largest logit of each position so far, and its token.
    best = [torch.full((len(h),), -torch.inf, device=h.device) for h in hidden]
    favourites = [torch.zeros_like(b, dtype=torch.long) for b in best]
    difference = total = 0.0
    for start in range(0, config.vocab_size, ROWS):
        rows = slice(start, start + ROWS)
        logits = [m.head(rows, h) for m, h in zip(models, hidden, strict=True)]
        difference += (logits[1] - logits[0]).double().square().sum().item()
        total += logits[0].double().square().sum().item()
        for i, (value, place) in enumerate(scores.max(-1) for scores in logits):
            better = value > best[i]
            best[i] = torch.where(better, value, best[i])
            favourites[i] = torch.where(better, start + place, favourites[i])
    same = (favourites[0] == favourites[1]).float().mean().item()
    return math.sqrt(difference / total), same
