"""Continue prompts of token ids: for texts that no chat template writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from colab_utils import models, runtime
from colab_utils.generation.sampling import sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.generation.sampling import Sampler


def continuations(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[str]:
    """Return the text that a model writes after each prompt, by greedy decoding.

    A text ends at a token of `models.stop_tokens`, or after `max_new_tokens` tokens.
    Spaces at its beginning are kept.
    """
    ends = models.stop_tokens(model, tokenizer)
    found = new_tokens(
        model, prompts, ends, max_new_tokens, batch_size, label="writing"
    )
    texts = []
    for prompt, ids in zip(prompts, found, strict=True):
        ids = ids[:-1] if ids[-1] in ends else ids
        texts.append(_text(tokenizer, prompt[-1:], ids))
    return texts


def new_tokens(
    model: PreTrainedModel,
    prompts: list[list[int]],
    ends: list[int],
    max_new_tokens: int,
    batch_size: int,
    sample: Sampler | None = None,
    label: str = "",
) -> list[list[int]]:
    """Return the token ids that a model writes after each prompt of token ids.

    They include the token of `ends` that ended them. `sample` chooses a token from the
    logits; without it, decoding is greedy. With a `label` there is a progress bar.
    """
    from colab_utils.fast.decoder import make_decoder

    if not prompts:
        return []
    sample = sample or sampler()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    with models.in_mode(model, training=False):
        size = len(prompts[order[-1]]) + max_new_tokens
        decoder = make_decoder(model, min(batch_size, len(prompts)), size)
        steps = range(0, len(order), decoder.rows)
        for start in runtime.progress(steps, label) if label else steps:
            rows = order[start : start + decoder.rows]
            logits = decoder.start([prompts[i] for i in rows])
            for count in range(max_new_tokens):
                tokens = sample(logits)
                for i, token in zip(rows, tokens.tolist(), strict=True):
                    if not found[i] or found[i][-1] not in ends:
                        found[i].append(token)
                if count == max_new_tokens - 1 or all(
                    found[i][-1] in ends for i in rows
                ):
                    break
                logits = decoder.step(tokens)
    return found


def _text(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """Return the text of ids after another id: alone they would lose a first space."""
    whole = cast("str", tokenizer.decode([*before, *ids]))
    return whole[len(cast("str", tokenizer.decode(before))) :]
