"""Decode token by token: on a static cache, or with transformers' own forward pass.

`make_decoder` returns a decoder for a batch of conversations. A model keeps a decoder
between answers: `borrow_decoder` lends it, and `release_decoder` frees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from colab_utils import memory
from colab_utils.fast import lora, support
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_decoder(
    model: PreTrainedModel, rows: int, size: int
) -> StaticDecoder | ReferenceDecoder:
    """Return a decoder of `rows` conversations of up to `size` tokens each.

    The decoder has fewer rows if the GPU lacks free memory for the keys and values of
    all rows. If no static cache is possible, this prints the reason. Raises ValueError
    for an adapter that is a prompt, which a decoder would leave out.
    """
    if support.is_prompt(model):
        raise ValueError("The adapter is a prompt, not a LoRA: use model.generate.")
    if problem := support.decoding_problem(model) or _window_problem(model, size):
        _report_once(model, problem)
        return ReferenceDecoder(model, rows)
    if model.device.type == "cuda":
        one = memory.kv_cache_bytes(lora.llama(model).config, size)
        rows = max(1, min(rows, int(0.6 * memory.free_gpu() / one)))
    return StaticDecoder(model, rows, size)


def _window_problem(model: torch.nn.Module, size: int) -> str | None:
    """Return the problem of a cache that is longer than the model's sliding window."""
    window = Shape.from_config(lora.llama(model).config).window
    if window is None or size <= window:
        return None
    return f"{size:,} tokens are more than the sliding window of {window:,}"


def _report_once(model: torch.nn.Module, problem: str) -> None:
    """Print why a model is decoded on the reference path, unless it was printed last.

    The model holds the reason that was printed.
    """
    name = "_reason_of_reference_decoding"
    if vars(model).get(name) != problem:
        vars(model)[name] = problem
        print(f"reference decoding: {problem}")


class Kept:
    """Holds the decoder that a model keeps for its next answer; copies hold none."""

    NAME = "_kept_decoder"  # the attribute of a LlamaForCausalLM

    def __init__(self, decoder: StaticDecoder | None = None) -> None:
        self.decoder = decoder

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        """Copy and pickle without the decoder: a CUDA graph can't be copied."""
        return Kept, ()

    @classmethod
    def take(cls, model: torch.nn.Module) -> StaticDecoder | None:
        """Remove the decoder that a model keeps, and return it."""
        inner = lora.find_llama(model)
        kept = None if inner is None else vars(inner).pop(cls.NAME, None)
        return kept.decoder if kept else None


def release_decoder(model: torch.nn.Module) -> None:
    """Free the memory that a model keeps for its next answer."""
    Kept.take(model)


@contextmanager
def borrow_decoder(
    model: PreTrainedModel, size: int
) -> Iterator[StaticDecoder | ReferenceDecoder]:
    """Lend the decoder of one row that the model keeps, or a new one.

    The decoder is new if the model has changed since, or if another caller has borrowed
    the kept one. At the end the model keeps it, with its memory and its recorded step.
    """
    kept: StaticDecoder | ReferenceDecoder | None = Kept.take(model)
    if isinstance(kept, StaticDecoder) and (
        support.decoding_problem(model) or not kept.fits(model, size)
    ):
        kept = None  # frees its memory for the new decoder
    decoder = kept or make_decoder(model, 1, size)
    try:
        yield decoder
    finally:
        if isinstance(decoder, StaticDecoder):
            vars(lora.llama(model))[Kept.NAME] = Kept(decoder)


class ReferenceDecoder:
    """Decodes any model with transformers' forward pass, on a cache that grows.

    `start` and `step` have the arguments and results of a `StaticDecoder`.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model, self.rows = model, rows
        self.cache: Any = None

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
        """Return the logits after the last token of each row."""
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
