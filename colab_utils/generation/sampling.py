"""Choose the next token: greedy decoding, or sampling from the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

    Sampler = Callable[[torch.Tensor], torch.Tensor]


class Sampling(TypedDict, total=False):
    """The keyword arguments of `sampler`; None means the default."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None


def sampler(
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **unknown: object,
) -> Sampler:
    """Return a function from logits (rows, vocabulary) to the next tokens (rows,).

    The default is greedy decoding. With do_sample=True the function applies the
    temperature first, then top_k (0 means no limit), then top_p. Raises ValueError for
    a setting that is unknown, out of range or without effect.
    """
    if not isinstance(do_sample, bool | None):
        raise ValueError(f"do_sample = {do_sample!r}, but it must be True or False.")
    if given := [name for name, value in unknown.items() if value is not None]:
        raise ValueError(
            f"Unknown setting: {', '.join(sorted(given))}. Sampling takes do_sample, "
            "temperature, top_k, top_p, stop and max_new_tokens."
        )
    limits = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = [name for name, value in limits.items() if value is not None]
    if not do_sample:
        if given:
            raise ValueError(
                f"{', '.join(given)}: allowed only with do_sample=True. Without it, "
                "greedy decoding takes the top-1 token."
            )
        return greedy
    return _random(temperature, top_k, top_p)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the most probable token of each row."""
    return logits.argmax(-1)


def _random(
    temperature: float | None, top_k: int | None, top_p: float | None
) -> Sampler:
    """Return a function that samples from the logits after transformers' warpers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[TemperatureLogitsWarper | TopKLogitsWarper | TopPLogitsWarper] = []
    if temperature is not None:
        if not temperature >= 1e-6:  # also false for NaN
            raise ValueError(
                f"temperature = {temperature}, but it must be at least 0.000001. For "
                "greedy decoding set do_sample=False."
            )
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None and top_k != 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))

    def draw(logits: torch.Tensor) -> torch.Tensor:
        for warper in warpers:
            logits = warper(None, logits)
        return logits.softmax(-1).multinomial(1).squeeze(1)

    return draw
