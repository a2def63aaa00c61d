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
    from colab_utils.generation.decoding import decode

    if not prompts:
        return []
    found: list[list[int]] = [[] for _ in prompts]

    def add(i: int, token: int) -> bool:
        found[i].append(token)
        return token in ends or len(found[i]) == max_new_tokens

    size = max(map(len, prompts)) + max_new_tokens
    with models.in_mode(model, training=False):
        decoder = make_decoder(model, min(batch_size, len(prompts)), size)
        done = decode(decoder, prompts, sample or sampler(), add)
        for _ in runtime.progress(done, label, total=len(prompts)) if label else done:
            pass
    return found


def _text(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """Return the text of ids after another id: alone they would lose a first space."""
    whole = cast("str", tokenizer.decode([*before, *ids]))
    return whole[len(cast("str", tokenizer.decode(before))) :]
