"""Continue prompts of token ids: for texts that no chat template writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from colab_utils import models, runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


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
    from colab_utils.fast.decoder import make_decoder

    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    ends = models.stop_tokens(model, tokenizer)
    found = [""] * len(prompts)
    with models.in_mode(model, training=False):
        size = len(prompts[order[-1]]) + max_new_tokens
        decoder = make_decoder(model, min(batch_size, len(prompts)), size)
        for start in runtime.progress(range(0, len(order), decoder.rows), "writing"):
            rows = order[start : start + decoder.rows]
            new: list[list[int]] = [[] for _ in rows]
            logits = decoder.start([prompts[i] for i in rows])
            for count in range(max_new_tokens):
                tokens = logits.argmax(-1)
                for ids, token in zip(new, tokens.tolist(), strict=True):
                    if not ids or ids[-1] not in ends:
                        ids.append(token)
                if count == max_new_tokens - 1 or all(ids[-1] in ends for ids in new):
                    break
                logits = decoder.step(tokens)
            for i, ids in zip(rows, new, strict=True):
                ids = ids[:-1] if ids[-1] in ends else ids
                found[i] = _text(tokenizer, prompts[i][-1:], ids)
    return found


def _text(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """Return the text of ids after another id: alone they would lose a first space."""
    whole = cast("str", tokenizer.decode([*before, *ids]))
    return whole[len(cast("str", tokenizer.decode(before))) :]
