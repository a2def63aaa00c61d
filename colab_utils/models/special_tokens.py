"""Choose the token that pads, and find the tokens that end an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from colab_utils import data
from colab_utils.data.tokens.pieces import FAMILY_MARKS
from colab_utils.data.tokens.rendering import Conversations, probe
from colab_utils.data.tokens.vocabulary import special_tokens, token_id
from colab_utils.weights import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

PAD_NAMES = (re.compile("pad", re.I), re.compile("reserved|unused|extra|placeholder"))


def stop_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens that end an answer, the tokenizer's EOS first.

    The others are those of the model's generation_config, and those that the chat
    template writes at the end of an answer.
    """
    found = [tokenizer.eos_token_id, *as_ids(model.generation_config.eos_token_id)]
    found += data.end_of_turn(tokenizer)
    return list(dict.fromkeys(i for i in found if i is not None))


def as_ids(value: int | list[int] | None) -> list[int]:
    """Return the ids of a config's field, which holds one id, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def add_tokens(
    model: PreTrainedModel, tokenizer: Tokenizer, tokens: Sequence[str]
) -> list[int]:
    """Add special tokens to a tokenizer, and rows for them to its model; return ids.

    A new row is the mean of the model's rows, in the embeddings and in the head. A
    model that has more rows than tokens uses these first. A token that the tokenizer
    has already keeps its id and its row. Prints the number of rows.
    """
    from tokenizers import AddedToken

    new = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(new, special_tokens=True)
    old = vocabulary.embeddings(model)
    rows = max(old, len(tokenizer))
    vocabulary.resize(model, rows)
    print(f"{len(tokens)} added tokens: {old:,} embeddings before, {rows:,} now")
    return cast("list[int]", tokenizer.convert_tokens_to_ids(list(tokens)))


def set_padding(tokenizer: Tokenizer, embeddings: int | None, stops: list[int]) -> None:
    """Pad on the right, with a token that is never trained on and has an embedding.

    The authors' pad token stays, unless it is EOS, is written by the chat template, or
    has no embedding; another choice is printed with its reason. `embeddings` is their
    number, None if unknown; `stops` are the ids that end an answer. A tokenizer whose
    special tokens are all in use pads with EOS: the attention mask alone then shows
    what is padding, and packed rows have none.
    """
    tokenizer.padding_side = "right"
    embeddings = embeddings or len(tokenizer)
    written = _written(tokenizer)
    problem = _pad_problem(tokenizer, embeddings, written)
    if problem is None:
        return
    marks = (token_id(tokenizer, t) for family in FAMILY_MARKS for t in family[:3])
    used = written | set(stops) | {number for number in marks if number is not None}
    if unused := _unused(tokenizer, embeddings, used):
        tokenizer.pad_token = unused
        print(f"pad token: {unused}, because {problem}")
    else:
        tokenizer.pad_token = tokenizer.eos_token or next(
            iter(special_tokens(tokenizer))
        )
        print(
            f"pad token: {tokenizer.pad_token}, because the tokenizer has no unused "
            "special token; the attention mask shows what is padding"
        )


def _pad_problem(
    tokenizer: Tokenizer, embeddings: int, written: set[int]
) -> str | None:
    """Return why the authors' pad token can't be used, or None if it can."""
    token, number = tokenizer.pad_token, tokenizer.pad_token_id
    if token is None:
        return "the tokenizer has none"
    if number >= embeddings:
        return (
            f"{token} has no embedding: its id is {number:,}, and the model has "
            f"{embeddings:,} embeddings"
        )
    if number == tokenizer.eos_token_id:
        return f"{token} is the EOS token"
    return f"the chat template writes {token}" if number in written else None


def _unused(tokenizer: Tokenizer, embeddings: int, used: set[int]) -> str | None:
    """Return a special token that no training text contains, or None.

    A name with "pad" comes first, then one with "reserved" or the like, then `<unk>`,
    then the last of the others: chat formats use the first ones.
    """
    used = used | {tokenizer.eos_token_id, tokenizer.bos_token_id}
    found = [
        str(token)
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and i < embeddings and i not in used
    ]
    others = [token for token in found if token != tokenizer.unk_token]
    named = [t for pattern in PAD_NAMES for t in others if pattern.search(t)]
    unk = [token for token in found if token == tokenizer.unk_token]
    return next(iter(named or unk or others[::-1]), None)


def _written(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of the special tokens that the chat template can write."""
    chats = Conversations(tokenizer)
    messages = chats.prepare(probe("system", "user", "assistant"))
    text = str(tokenizer.get_chat_template()) + chats.render(messages)
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if str(token) in text}
