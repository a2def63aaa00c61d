"""Compare a merged model with base and adapter, one decoder layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.weights import nf4
from colab_utils.weights.adapters import EMBEDDINGS, HEAD, Update, read_adapter
from colab_utils.weights.shards import find_shards, tensors_of

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    # From x and W x of a linear layer to its output with the adapter.
    AddUpdate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

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


class _Model:
    """A model whose weights are read from its files when they are used.

    `updates` and `replaced` are its adapter. With `quantized_in` its linear weights are
    quantized to NF4 in that dtype and dequantized.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        updates: dict[str, Update] | None = None,
        replaced: dict[str, torch.Tensor] | None = None,
        quantized_in: torch.dtype | None = None,
    ) -> None:
        shards = find_shards(folder)
        self.files = {name: s for s in shards for name, _ in tensors_of(s)}
        self.folder, self.device, self.quantized_in = folder, device, quantized_in
        self.updates, self.replaced = updates or {}, replaced or {}

    def stored(self, name: str) -> torch.Tensor:
        """Return a tensor of the files; only the rows that are used are read."""
        from safetensors import safe_open

        if name not in self.files:
            raise ValueError(f"{self.folder} lacks {name}: merge again.")
        with safe_open(self.files[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        if self.quantized_in and nf4.QUANTIZED.fullmatch(name):
            return nf4.dequantized(tensor, self.quantized_in)
        return tensor

    def weight(self, name: str) -> torch.Tensor:
        """Return the stored tensor, or the one with which the adapter replaces it."""
        return self.replaced[name] if name in self.replaced else self.stored(name)

    def embedded(self, ids: list[int]) -> torch.Tensor:
        """Return the embeddings of token ids, (1, tokens, width)."""
        out = self.weight(EMBEDDINGS)[ids].float()
        if EMBEDDINGS in self.updates:
            update = self.updates[EMBEDDINGS]
            out += update.scale * update.b[ids] @ update.a
        return out[None].to(self.device)

    def add_update(
        self, name: str, weight: torch.Tensor, rows: slice
    ) -> AddUpdate | None:
        """Return the function that computes W x + scale B (A x) from x and W x.

        `weight` holds the `rows` of W. PEFT computes in this order; `merge` adds B A to
        W instead. Returns None if the adapter does not update this weight.
        """
        import torch

        if name not in self.updates:
            return None
        update = self.updates[name]
        a, b = update.a.to(self.device), update.b[rows].to(self.device)
        length: torch.Tensor | float = 1.0
        if update.lengths is not None:
            merged = torch.addmm(weight, b, a, alpha=update.scale)
            length = update.lengths[rows].to(self.device) / merged.norm(dim=1)
        return lambda x, out: length * (out + update.scale * (x @ a.T @ b.T))

    def logits(self, rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the tokens in `rows`, (positions, rows)."""
        tied = HEAD not in self.files and HEAD not in self.replaced
        stored = self.stored(EMBEDDINGS) if tied else self.weight(HEAD)
        weight = stored[rows].to(self.device).float()
        add_update, out = self.add_update(HEAD, weight, rows), hidden @ weight.T
        return add_update(hidden, out) if add_update else out


def verify(
    base: Path | str,
    adapter: Path | str,
    merged: Path | str,
    conversations: list[list[int]],
    weights: str = "original",
) -> Comparison:
    """Run token ids through base with adapter and through the merged model.

    This computes in float32 and holds one decoder layer at a time: 1 GiB for Llama 2
    7B. Pass the same `weights` as to `merge`. Raises ValueError for another
    architecture than Llama, for a merged model whose config differs from the base's in
    a way that changes the logits, and for conversations without tokens.
    """
    import torch
    from transformers import AutoConfig

    base, adapter, merged = Path(base), Path(adapter), Path(merged)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    updates, replaced = read_adapter(adapter)
    dequantize, shards = weights == "dequantized", find_shards(base)
    quantized_in = nf4.trained_dtype(shards, adapter) if dequantize else None
    adapted = _Model(base, device, updates, replaced, quantized_in)
    models = (adapted, _Model(merged, device))
    config, other = (  # "sdpa" without a mask is causal
        AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        for folder in (base, merged)
    )
    _check_alike(config, other)
    conversations = [ids for ids in conversations if len(ids)]
    if not conversations:
        raise ValueError("There are no tokens to compare on: is the test file empty?")
    with torch.inference_mode():
        states = [[model.embedded(ids) for ids in conversations] for model in models]
        layers = _run_layers(config, models, states)
        return Comparison(*_compare_logits(config, models, states), layers)


def _check_alike(base_config: LlamaConfig, merged_config: LlamaConfig) -> None:
    """Raise ValueError unless both are Llamas whose configs compute the same."""
    base, merged = base_config.to_dict(), merged_config.to_dict()
    if base["model_type"] != "llama":
        raise ValueError(
            f"The base is a {base['model_type']} model, and only Llama is compared one "
            "layer at a time. Load both models with models.load_model instead."
        )
    for name in sorted((base.keys() | merged.keys()) - IRRELEVANT):
        if base.get(name) != merged.get(name):
            raise ValueError(
                f"The merged model computes differently: its config says {name} = "
                f"{merged.get(name)}, the base's {base.get(name)}. Merge again."
            )


def _run_layers(
    config: LlamaConfig, models: tuple[_Model, ...], states: list[list[torch.Tensor]]
) -> list[float]:
    """Run both models' states through all layers; return the relative differences."""
    import torch
    from transformers.models.llama import modeling_llama as llama

    device = models[0].device
    with torch.device("meta"):
        layer = llama.LlamaDecoderLayer(config, 0).requires_grad_(False).eval()
    layer = layer.to_empty(device=device)
    rotary = llama.LlamaRotaryEmbedding(config).to(device)
    differences = []
    for i in runtime.progress(range(config.num_hidden_layers), "comparing layers"):
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


def _load(
    layer: LlamaDecoderLayer, model: _Model, prefix: str
) -> list[RemovableHandle]:
    """Fill a decoder layer with a model's weights; return the hooks of its adapter."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(model.weight(prefix + name).to(model.device))
    hooks = []
    for name, module in layer.named_modules():
        if f"{prefix}{name}.weight" in model.updates:
            weight = module.get_parameter("weight")
            add = model.add_update(f"{prefix}{name}.weight", weight, slice(None))
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
    config: LlamaConfig, models: tuple[_Model, ...], states: list[list[torch.Tensor]]
) -> tuple[float, float]:
    """Return the logits' relative difference and the share of equal top-1 tokens."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    hidden = []
    for model, given in zip(models, states, strict=True):
        norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps).to(model.device)
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
