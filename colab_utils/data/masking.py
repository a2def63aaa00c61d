"""Decide which tokens of a conversation are trained, for any chat template.

The assistant's answers and the tokens that end them are trained. Everything else is
not: the system prompt, the user's turns, the header of an answer (the generation
prompt), and what a template writes after the end of a turn, such as ChatML's newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from colab_utils import runtime
from colab_utils.data.rendering import (
    BadTemplate,
    Conversations,
    Span,
    added_tokens,
    naming,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row


class Tokens(TypedDict):
    """The token ids of a conversation, and 1 for each token that is trained, else 0."""

    input_ids: list[int]
    assistant_masks: list[int]


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Return the text of a conversation, as the model reads it in training.

    A system message that the chat template does not take is put in front of the first
    user turn. Raises ValueError if the template rejects the messages.
    """
    conversations = Conversations(tokenizer)
    return conversations.render(conversations.prepare(messages))


def trained_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> Tokens:
    """Return the token ids of a conversation, and which of them are trained.

    {"input_ids": [1, 518, ...], "assistant_masks": [0, 0, ..., 1, 1]}. A system message
    that the chat template does not take is put in front of the first user turn. Raises
    ValueError if the template rejects the messages or can't be used for training.
    """
    conversations = Conversations(tokenizer)
    text, spans = conversations.trained_spans(conversations.prepare(messages))
    return _encode([text], [spans], tokenizer)[0]


def tokenize(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Tokens]:
    """Return for each row its token ids, and which of them are trained.

    Prints a line if system messages are put in front of the first user turn. Raises the
    errors of `trained_tokens`, and ValueError for a row without trained tokens.
    """
    conversations = Conversations(tokenizer)
    found: list[Tokens] = []
    moved = 0
    for start in runtime.progress(range(0, len(rows), 500), "tokenizing"):
        texts, spans = [], []
        for row in rows[start : start + 500]:
            with naming(row):
                messages = conversations.prepare(row["messages"])
                text, trained = conversations.trained_spans(messages)
            moved += len(messages) < len(row["messages"])
            texts.append(text)
            spans.append(trained)
        found += _encode(texts, spans, tokenizer)
    for row, tokens in zip(rows, found, strict=True):
        with naming(row):
            if not any(tokens["assistant_masks"]):
                raise BadTemplate(conversations.name, "marks none of its tokens")
    if moved:
        print(
            f"the chat template takes no system message: in {moved:,} of {len(rows):,} "
            "rows it stands in front of the first user turn"
        )
    return found


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that end an answer in the chat template.

    ChatML: [<|im_end|>]. The list is empty if the template writes none, or if it can't
    be used for training.
    """
    if tokenizer.chat_template is None:
        return []
    try:
        ends = Conversations(tokenizer).end_of_turn()
    except ValueError:
        return []
    ids = added_tokens(tokenizer)
    return [ids[token] for token in ends]


def check_offsets(tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer can't return which characters a token holds."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} is a slow one "
            f"({type(tokenizer).__name__}): it does not return which characters a "
            "token holds, so the trained tokens can't be found. Use a model whose "
            "repository has a tokenizer.json."
        )


def _encode(
    texts: list[str], spans: list[list[Span]], tokenizer: Tokenizer
) -> list[Tokens]:
    """Return the tokens of rendered texts, with 1 for those within the spans.

    A token that lies partly within a span is trained; an added or special token is
    trained if it begins there. No token is added: the texts hold all special tokens.
    """
    check_offsets(tokenizer)
    encoded = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    added = set(added_tokens(tokenizer).values())
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    return [
        {
            "input_ids": ids,
            "assistant_masks": _mask(ids, offsets, trained, added),
        }
        for ids, offsets, trained in rows
    ]


def _mask(
    ids: list[int], offsets: list[Span], spans: list[Span], added: set[int]
) -> list[int]:
    """Return 1 for each token of the spans, which are in order, and 0 for others."""
    mask, i, past = [], 0, 0
    for token, (first, last) in zip(ids, offsets, strict=True):
        # Some tokenizers leave the space before a word out of its offsets.
        begin = first if token in added else min(first, past)
        while i < len(spans) and spans[i][1] <= begin:
            i += 1
        trained = i < len(spans) and last > spans[i][0]
        if token in added:
            trained = trained and begin >= spans[i][0]
        mask.append(int(trained))
        past = max(past, last)
    return mask
