"""Decide which tokens of a conversation are trained, for any chat template.

The assistant's answers and the tokens that end them are trained. Everything else is
not: the system prompt, the user's turns, the header of an answer (the generation
prompt), and what a template writes after the end of a turn, such as ChatML's newline.

A template with `{% generation %}` tags says itself what to train. For all others, each
answer is found by rendering the conversation again with a placeholder in its place: the
text after the placeholder is what follows the answer in the real conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict, cast

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row

GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PLACEHOLDER = "qxzplaceholder"
Span = tuple[int, int]  # the first character, and the one after the last
COURSE = 'Set TEMPLATE = "course" in 01_create_dataset to use the course\'s template.'


class Tokens(TypedDict):
    """The token ids of a conversation, and 1 for each token that is trained, else 0."""

    input_ids: list[int]
    assistant_masks: list[int]


class Conversations:
    """Render and tokenize conversations with one tokenizer, all on the same date.

    Templates may write today's date. All renderings use the date of this object, so
    that they can be compared.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self._now = datetime.now()
        self._template = _template(tokenizer)
        self._takes_system: bool | None = None
        special = special_tokens(tokenizer)
        self._special_ids = set(special.values())
        by_length = sorted(filter(None, special), key=len, reverse=True)
        pattern = "|".join(map(re.escape, by_length))
        self._special = re.compile(pattern) if by_length else None

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return the text of a conversation; `prompt` adds the generation prompt.

        Raises ValueError if the template rejects the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=prompt,
                strftime_now=self._now.strftime,
            )
        except Exception as error:  # a template can raise any error
            raise ValueError(
                f"The chat template of {self.name} rejects these messages: {error}"
            ) from error
        return cast(str, text)

    def takes_system(self) -> bool:
        """Return whether the template writes a system message into a conversation.

        Some templates raise an error for one, and some leave it out.
        """
        if self._takes_system is None:
            turns = _turns("user", "assistant")
            system = {"role": "system", "content": PLACEHOLDER}
            try:
                self._takes_system = PLACEHOLDER in self.render([system, *turns])
            except ValueError:
                self.render(turns)  # raises an error that is not about the system role
                self._takes_system = False
        return self._takes_system

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages, with a system message that the template doesn't take
        in front of the first user turn, after which comes an empty line.
        """
        first, *rest = messages
        if first["role"] != "system" or not rest or self.takes_system():
            return list(messages)
        text = f"{first['content']}\n\n{rest[0]['content']}"
        return [{**rest[0], "content": text}, *rest[1:]]

    def trained_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the text of prepared messages, and the spans that are trained."""
        if GENERATION_TAG.search(self._template):
            return self._tagged_spans(messages)
        text = self.render(messages)
        return text, [
            self._answer_span(text, messages, i)
            for i, turn in enumerate(messages)
            if turn["role"] == "assistant"
        ]

    def _tagged_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the text, and the spans between the template's `generation` tags."""
        from transformers.utils.chat_template_utils import render_jinja_template

        self.render(messages)  # raises the error of a template that rejects them
        variables: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        variables["strftime_now"] = self._now.strftime
        rendered: Any = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **variables,
        )
        (text,), (spans,) = rendered
        return text, spans

    def _answer_span(self, text: str, messages: Sequence[Message], i: int) -> Span:
        """Return the span of the answer at index `i` and of what ends it.

        The answer begins where the generation prompt ends.
        """
        mark = _placeholder(messages)
        head, tail = self._around(messages, i, mark)
        prompt = self.render(messages[:i], prompt=True)
        if head.startswith(prompt):
            start = len(prompt)
        else:
            start = len(head) - self._header_excess(messages, i, mark)
        end = len(text) - len(tail)
        if not text.endswith(tail) or text[:start] != head[:start] or start > end:
            raise self.cannot_mark(
                "renders an answer in a way that depends on the text"
            )
        if i + 1 < len(messages):
            _, last = self._around(messages[: i + 1], i, mark)
            tail = tail[: _shared(tail, last)]
        return start, end + self._end_length(tail)

    def _around(
        self, messages: Sequence[Message], i: int, mark: str
    ) -> tuple[str, str]:
        """Return the text before and after the message at index `i`."""
        marked = list(messages)
        marked[i] = {**marked[i], "content": mark}
        head, found, tail = self.render(marked).partition(mark)
        if not found or mark in tail:
            raise self.cannot_mark("does not write each message exactly once")
        return head, tail

    def _header_excess(self, messages: Sequence[Message], i: int, mark: str) -> int:
        """Return how many characters before the answer are not in the prompt.

        The texts between the last user turn and the answer are compared: a template may
        render what comes before in another way when the answer is missing.
        """
        if i == 0:
            raise self.cannot_mark("begins an answer in another way than a prompt does")
        asked = _placeholder(messages, "wxzquestion")
        marked = list(messages)
        marked[i - 1] = {**marked[i - 1], "content": asked}
        head, _ = self._around(marked, i, mark)
        prompt = self.render(marked[:i], prompt=True)
        if head.count(asked) != 1 or prompt.count(asked) != 1:
            raise self.cannot_mark("does not write each message exactly once")
        between, header = (t.partition(asked)[2] for t in (head, prompt))
        return len(between) - _shared(between, header)

    def _end_length(self, tail: str) -> int:
        """Return how many characters after an answer end it.

        The first special token does, with those that follow it without a gap. Without a
        special token it is all text but the white space at the end.
        """
        if not self._special or not (found := self._special.search(tail)):
            return len(tail.rstrip())
        end = found.end()
        while following := self._special.match(tail, end):
            end = following.end()
        return end

    def encode(self, texts: list[str], spans: list[list[Span]]) -> list[Tokens]:
        """Return the tokens of rendered texts, with 1 for those within the spans.

        A token that lies partly within a span is trained; a special token is trained if
        it begins there. No token is added: the texts hold all special tokens.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"The tokenizer of {self.name} ({type(self.tokenizer).__name__}) does "
                "not tell which characters a token holds, so the trained tokens can't "
                "be found. Use a model whose repository has a tokenizer.json."
            )
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
        return [
            {
                "input_ids": ids,
                "assistant_masks": _mask(ids, offsets, trained, self._special_ids),
            }
            for ids, offsets, trained in rows
        ]

    def cannot_mark(self, why: str) -> ValueError:
        """Return the error that the template's answers can't be found."""
        return ValueError(
            f"The chat template of {self.name} can't be used for training, because it "
            f"{why}. {COURSE}"
        )


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the special tokens of a tokenizer, with their ids.

    `all_special_tokens` lacks those that have no role, such as Llama 3's `<|eot_id|>`.
    """
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return {**{t.content: i for i, t in added if t.special}, **dict(named)}


def trained_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> Tokens:
    """Return the token ids of a conversation, and which of them are trained.

    {"input_ids": [1, 518, ...], "assistant_masks": [0, 0, ..., 1, 1]}. A system message
    that the chat template does not take is put in front of the first user turn. Raises
    ValueError if the template rejects the messages or can't be used for training.
    """
    conversations = Conversations(tokenizer)
    text, spans = conversations.trained_spans(conversations.prepare(messages))
    return conversations.encode([text], [spans])[0]


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
            messages = conversations.prepare(row["messages"])
            moved += len(messages) < len(row["messages"])
            text, trained = _of_row(conversations, row, messages)
            texts.append(text)
            spans.append(trained)
        found += conversations.encode(texts, spans)
    for row, tokens in zip(rows, found, strict=True):
        if not any(tokens["assistant_masks"]):
            raise ValueError(
                f"The row of line {_line(row)} has no trained token in the chat "
                f"template of {conversations.name}. {COURSE}"
            )
    if moved:
        print(
            f"the chat template takes no system message: in {moved:,} of {len(rows):,} "
            "rows it stands in front of the first user turn"
        )
    return found


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that end an answer in the chat template.

    ChatML: [<|im_end|>]. The list is empty if the template writes none, and if the
    tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        return []
    tokens = trained_tokens(_turns("user", "assistant"), tokenizer)
    special = set(special_tokens(tokenizer).values())
    pairs = zip(*tokens.values(), strict=True)
    return [token for token, trained in pairs if trained and token in special]


def _of_row(
    conversations: Conversations, row: Row, messages: list[Message]
) -> tuple[str, list[Span]]:
    try:
        return conversations.trained_spans(messages)
    except ValueError as error:
        raise ValueError(f"The row of line {_line(row)}: {error}") from error


def _line(row: Row) -> str:
    return str(row.get("line", "?"))


def _turns(*roles: str) -> list[Message]:
    return [{"role": role, "content": f"The {role} speaks."} for role in roles]


def _template(tokenizer: Tokenizer) -> str:
    """Return the tokenizer's chat template; of several, the default one."""
    return tokenizer.get_chat_template()


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _placeholder(messages: Sequence[Message], mark: str = PLACEHOLDER) -> str:
    """Return a text that no message contains."""
    while any(mark in turn["content"] for turn in messages):
        mark += "x"
    return mark


def _mask(
    ids: list[int], offsets: list[Span], spans: list[Span], special: set[int]
) -> list[int]:
    """Return 1 for each token of the spans, which are in order, and 0 for others."""
    mask, i, past = [], 0, 0
    for token, (first, last) in zip(ids, offsets, strict=True):
        # Some tokenizers leave the space before a word out of its offsets.
        begin = first if token in special else min(first, past)
        while i < len(spans) and spans[i][1] <= begin:
            i += 1
        trained = i < len(spans) and last > spans[i][0]
        if token in special:
            trained = trained and begin >= spans[i][0]
        mask.append(int(trained))
        past = max(past, last)
    return mask
