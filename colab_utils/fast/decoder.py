"""Decode token by token: on a static cache (`Static`), or as transformers does."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from colab_utils import memory
from colab_utils.fast import layer as layers
from colab_utils.fast.static_cache import Static

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

ROPES = ("default", "linear", "llama3")  # angles that don't depend on the length


def why_not(model: PreTrainedModel) -> str | None:
    """Why `Static` can't decode this model, or None."""
    inner = layers.llama(model)
    if inner is None:
        return "the model is no LlamaForCausalLM"
    config = inner.config
    rope = config.rope_parameters["rope_type"]
    if config.hidden_act != "silu" or rope not in ROPES:
        return f"its activation is {config.hidden_act}, its positions are {rope}"
    if len({p.device for p in inner.model.parameters()}) > 1:
        return "it is spread over several devices"
    if not layers.plain_norms(inner):
        return "its norms are adapted, or of another kind"
    return layers.problem(inner.model.layers, _problem)


def _problem(linear: Any) -> str | None:
    """What keeps `Static` from computing a linear layer."""
    if layers.base(linear) is linear or linear.disable_adapters or linear.merged:
        return None
    active = [name for name in linear.active_adapters if name in linear.lora_A]
    if len(active) > 1:
        return "has more than one adapter"
    if any(linear.lora_variant.get(n) or linear.lora_bias.get(n) for n in active):
        return "has another kind of LoRA (DoRA, a bias, ...)"
    return None


def decoder(model: PreTrainedModel, rows: int, size: int) -> Static | Plain:
    """What decodes `rows` conversations of up to `size` tokens; a slow one says why.

    It has fewer rows where a GPU has no room for the keys and values of so many. Raises
    ValueError for an adapter that is a prompt, which needs more than scores.
    """
    if layers.has_prompt(model):
        raise ValueError("The adapter is a prompt, no LoRA: use model.generate.")
    if reason := why_not(model):
        print(f"plain decoding: {reason}")
        return Plain(model, rows)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        one = memory.kv_cache_bytes(model.config, size)
        rows = max(1, min(rows, int(0.6 * free / one)))
    return Static(model, rows, size)


# What answered last, kept for the next answer: its memory, and the recorded step.
_last: weakref.WeakKeyDictionary[LlamaForCausalLM, Static] = weakref.WeakKeyDictionary()


def forget(inner: LlamaForCausalLM) -> None:
    """Give back the memory that `reused` keeps for a model."""
    _last.pop(inner, None)


@contextmanager
def reused(model: PreTrainedModel, size: int) -> Iterator[Static | Plain]:
    """A decoder of one row: that of the last time where the model is still the same.

    It belongs to one reader at a time; a second one meanwhile gets another.
    """
    inner = layers.llama(model)
    last = _last.pop(inner, None) if inner is not None else None
    if last is None or why_not(model) or not last.fits(model, size):
        del last  # before its memory is needed again
        last = decoder(model, 1, size)
    try:
        yield last
    finally:
        if isinstance(last, Static):
            _last[inner] = last


class Plain:
    """The same for any model, as transformers computes it: a cache that grows."""

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model, self.rows = model, rows

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read prompts of token ids, padded on the left."""
        longest = max(len(prompt) for prompt in prompts)
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        self.mask = torch.tensor(mask, device=self.model.device)
        self.cache = None
        places = (self.mask.cumsum(1) - 1).clamp(min=0)
        return self._forward(torch.tensor(rows, device=self.model.device), places)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add one token (rows,) to each conversation."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return self._forward(tokens[:, None], self.mask.sum(1, keepdim=True) - 1)

    def _forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].float()
