"""What a row of each kind consists of: texts to tokenize, and token ids between them.

A sequence is a list of pieces, in order. Each is a text with the spans that are
trained, or token ids that are trained or not.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    kind_of,
)
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.data.tokens.spans import Conversation, Span
from colab_utils.data.tokens.tools import turns_of, uses_tools
from colab_utils.data.tokens.vocabulary import surrounding_ids, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row

# The marks of fill-in-the-middle before the prefix, the suffix and the middle, as model
# families have them in their vocabularies, and the token that ends the middle if it is
# not EOS: Code Llama; StarCoder, Granite; Qwen2.5 Coder, CodeGemma; DeepSeek Coder.
FAMILY_MARKS = (
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ""),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ""),
)
PLAIN_MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")  # without own ones


class Text(NamedTuple):
    """A text to tokenize. `inside`: it goes on after a mark, so no space is added."""

    text: str
    trained: Sequence[Span] = ()
    inside: bool = False


class Ids(NamedTuple):
    """Token ids between texts, all trained or none."""

    ids: Sequence[int]
    trained: bool = False


Piece = Text | Ids


@dataclass(frozen=True)
class Marks:
    """The marks of fill-in-the-middle, in the order prefix, suffix, middle."""

    texts: tuple[str, str, str]
    ids: tuple[int, ...]  # empty if the marks are plain text, not tokens
    end: int  # the token after the middle


def middle_marks(tokenizer: Tokenizer) -> Marks:
    """Return the marks of fill-in-the-middle: the tokenizer's own, or plain text.

    Raises ValueError if the tokenizer has no token that ends the middle.
    """
    for first, second, third, end in FAMILY_MARKS:
        texts = (first, second, third)
        ids = [token_id(tokenizer, text) for text in texts]
        known = tuple(number for number in ids if number is not None)
        if len(known) == len(texts):
            own = token_id(tokenizer, end) if end else None
            return Marks(texts, known, _eos(tokenizer) if own is None else own)
    return Marks(PLAIN_MARKS, (), _eos(tokenizer))


def _eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has no EOS token, so nothing "
            "ends a text. Set MODEL to another model."
        )
    return int(tokenizer.eos_token_id)


class Writer:
    """Write rows of any kind as pieces, for one tokenizer.

    `spans`: whether to find what is trained in conversations; it takes two renderings
    more for each answer.
    """

    def __init__(self, tokenizer: Tokenizer, spans: bool = True) -> None:
        self.tokenizer, self.spans = tokenizer, spans
        self.moved = 0  # conversations with a system message that had to be moved

    @functools.cached_property
    def chats(self) -> Conversations:
        """The conversations; raw texts need no chat template."""
        return Conversations(self.tokenizer)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        return surrounding_ids(self.tokenizer)

    @functools.cached_property
    def _marks(self) -> Marks:
        return middle_marks(self.tokenizer)

    def sequences(self, row: Row) -> list[list[Piece]]:
        """Return the sequences of a row: two of a preference row, otherwise one.

        Raises ValueError if the chat template rejects the messages.
        """
        kind = kind_of(row)
        if kind == INSTRUCTION:
            return [[self.conversation(row["messages"], row)]]
        if kind in (COMPLETION, CLASSIFICATION):
            return [self._raw_text(row["text"], kind == COMPLETION)]
        if kind == MIDDLE:
            return [self._middle(row)]
        first = len(row["prompt"])
        return [
            [self.conversation(row["prompt"] + answer, row, first)]
            for answer in (row["chosen"], row["rejected"])
        ]

    def conversation(
        self, messages: Sequence[Message], row: Row, reply: int | None = None
    ) -> Text:
        """Return a conversation's text, with the tools of its row.

        The trained spans are the answers. With the index of a `reply` they are all from
        there on, as in DPO.
        """
        turns, tools = self.chats.prepare(messages), row.get("tools")
        if uses_tools(row) and (problem := self.tool_problem(row)):
            raise ValueError(f"It {problem}.")
        moved = len(messages) - len(turns)
        self.moved += moved
        chat = Conversation(self.chats, turns, tools)
        if not self.spans:
            return Text(chat.text)
        if reply is None:
            return Text(chat.text, chat.trained_spans())
        return Text(chat.text, [chat.reply_span(reply - moved)])

    def tool_problem(self, row: Row) -> str | None:
        """Return why the template can't write a row's tools, or None if it can."""
        if not self.chats.takes_tools():
            return "uses tools, and the model's chat template takes none"
        both = any(turn.get("tool_calls") and turn["content"] for turn in turns_of(row))
        if both and not self.chats.takes_text_beside_calls():
            return (
                "has text next to a tool call, and the model's chat template leaves "
                "it out"
            )
        return None

    def _raw_text(self, text: str, trained: bool) -> list[Piece]:
        """Return a text with the BOS token; a trained one ends with EOS."""
        before, after = self._around
        spans = [(0, len(text))] if trained else []
        if trained:
            after = [_eos(self.tokenizer)]
        return [Ids(before), Text(text, spans), Ids(after, trained)]

    def _middle(self, row: Row) -> list[Piece]:
        """Return prefix, suffix and middle, each after its mark.

        As in Code Llama's training, only the prefix begins as a text does, with the
        space that some tokenizers add (Roziere et al. 2023, section 2.3).
        """
        marks, middle = self._marks, row["middle"]
        pieces: list[Piece] = [Text(text, inside=True) for text in marks.texts]
        if marks.ids:
            pieces = [Ids([number]) for number in marks.ids]
        first, second, third = pieces
        return [
            Ids(self._around[0]),
            first,
            Text(row["prefix"]),
            second,
            Text(row["suffix"], inside=True),
            third,
            Text(middle, [(0, len(middle))], inside=True),
            Ids([marks.end], True),
        ]
