"""Render conversations with a chat template, and find what is trained in the text.

A template with `{% generation %}` tags says itself what to train. For all others, each
answer is found by rendering the conversation again with a placeholder in its place: the
text after the placeholder is what follows the answer in the real conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row

TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
PLACEHOLDER = "qxzplaceholder"
Span = tuple[int, int]  # the first character, and the one after the last
COURSE = 'Set TEMPLATE = "course" in 01_create_dataset to use the course\'s template.'


class BadTemplate(ValueError):
    """A chat template that can't be used for training; `why` completes "it ..."."""

    def __init__(self, name: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"The chat template of {name} can't be used for training, because it "
            f"{why}. {COURSE}"
        )


class Conversations:
    """Render and tokenize conversations with one tokenizer, all on the same date.

    Templates may write today's date. All renderings use the date of this object, so
    that they can be compared. A template that can switch thinking off does so, in
    training as in generation, except for rows whose answers contain thinking.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        date = datetime.now().strftime
        self._variables: Any = {"strftime_now": date, "enable_thinking": False}
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError as error:
            why = "is one of several without a default"
            raise BadTemplate(self.name, why) from error
        self._takes_system: bool | None = None
        self._special = _any_of(special_tokens(tokenizer))
        self._added = _any_of(added_tokens(tokenizer))

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return the text of a conversation; `prompt` adds the generation prompt.

        Raises BadTemplate if the template rejects the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except Exception as error:  # a template can raise any error
            why = f"rejects these messages ({error})"
            raise BadTemplate(self.name, why) from error
        return cast(str, text)

    def takes_system(self) -> bool:
        """Return whether the template writes a system message into a conversation.

        Some templates raise an error for one, and some leave it out.
        """
        if self._takes_system is None:
            turns = probe("user", "assistant")
            system = {"role": "system", "content": PLACEHOLDER}
            try:
                self._takes_system = PLACEHOLDER in self.render([system, *turns])
            except BadTemplate:
                self._takes_system = False
        return self._takes_system

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages, with a system message that the template doesn't take
        in front of the first user turn, after which comes an empty line.
        """
        roles = [turn["role"] for turn in messages[:2]]
        if roles != ["system", "user"] or self.takes_system():
            return list(messages)
        first, *rest = messages
        text = f"{first['content']}\n\n{rest[0]['content']}"
        return [{**rest[0], "content": text}, *rest[1:]]

    def trained_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the text of prepared messages, and the spans that are trained."""
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        self._variables["enable_thinking"] = any("</think>" in text for text in answers)
        if TAG.search(self._template):
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
        variables = self._variables | self.tokenizer.special_tokens_map
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
        if i == 0:
            raise ValueError(
                "The conversation begins with an answer, not with a prompt."
            )
        mark = _placeholder(messages)
        head, tail = self._around(messages, i, mark)
        prompt = self.render(messages[:i], prompt=True)
        start, end = len(prompt), len(text) - len(tail)
        if not head.startswith(prompt) or not text.startswith(prompt):
            start = self._header_end(text, head, messages, i, mark)
        if start > end or not text.endswith(tail):
            raise BadTemplate(
                self.name, "writes an answer in a way that depends on its text"
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
            raise BadTemplate(self.name, "does not write each message exactly once")
        return head, tail

    def _header_end(
        self, text: str, head: str, messages: Sequence[Message], i: int, mark: str
    ) -> int:
        """Return where a text and the prompt of the answer at index `i` part.

        A generation prompt may begin the answer: some open a `<think>` there.
        """
        between, prompted = self._headers(messages, i, mark)
        before = len(head) - len(between)  # where the message before ends
        start = _shared(text, head[: before + _shared(between, prompted)])
        if start < before:
            raise BadTemplate(
                self.name, "writes a prompt in a way that depends on the answer"
            )
        return start

    def _headers(
        self, messages: Sequence[Message], i: int, mark: str
    ) -> tuple[str, str]:
        """Return the text before the answer at index `i`, and the end of its prompt.

        Both begin after the message before: a template may render what comes before in
        another way when the answer is missing.
        """
        asked = _placeholder(messages, "wxzquestion")
        marked = list(messages)
        marked[i - 1] = {**marked[i - 1], "content": asked}
        head, _ = self._around(marked, i, mark)
        prompt = self.render(marked[:i], prompt=True)
        if head.count(asked) != 1 or prompt.count(asked) != 1:
            raise BadTemplate(self.name, "does not write each message exactly once")
        return head.partition(asked)[2], prompt.partition(asked)[2]

    def missing_header(self) -> str:
        """Return what the template writes before an answer, but in no prompt.

        It is empty if there is a generation prompt. A space before the answer belongs
        to the answer. Raises BadTemplate if the template can't be used for training.
        """
        messages = probe("user", "assistant")
        if self.render(messages[:1]) != self.render(messages[:1], prompt=True):
            return ""
        between, prompted = self._headers(messages, 1, PLACEHOLDER)
        if not between.startswith(prompted):
            return ""
        header = between.removeprefix(prompted)
        return header.rstrip(" ") if header.strip() else ""

    def _end_length(self, tail: str) -> int:
        """Return how many characters after an answer end it.

        The first special token does, with those that follow it without a gap. Without a
        special token it is all text but the white space at the end.
        """
        for token in (self._special, self._added):
            if found := token.search(tail):
                end = found.end()
                while following := token.match(tail, end):
                    end = following.end()
                return end
        return len(tail.rstrip())

    def end_of_turn(self) -> list[str]:
        """Return the special tokens that end an answer; none if there are none.

        Raises BadTemplate if the template can't be used for training.
        """
        messages = probe("user", "assistant")
        text, spans = self.trained_spans(messages)
        if len(spans) != 1 or messages[1]["content"] not in text[slice(*spans[0])]:
            raise BadTemplate(
                self.name, "has `generation` tags that do not enclose an answer"
            )
        tail = text[slice(*spans[0])].partition(messages[1]["content"])[2]
        found = self._special.findall(tail) or self._added.findall(tail)
        # The tokenizer may cut an added token that it normalizes into pieces.
        real = set(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = added_tokens(self.tokenizer)
        return [token for token in found if ids[token] in real]


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Put the row's line in front of a ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        line = row.get("line", "?")
        raise ValueError(f"The row of line {line}: {error}") from error


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the special tokens of a tokenizer, with their ids.

    `all_special_tokens` lacks those that have no role, such as Llama 3's `<|eot_id|>`.
    """
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return {**{t.content: i for i, t in added if t.special}, **dict(named)}


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return all tokens that no text is cut into by chance, with their ids.

    They are the special tokens and the added ones, except white space.
    """
    added = tokenizer.added_tokens_decoder.items()
    visible = {t.content: i for i, t in added if t.content.strip()}
    return visible | special_tokens(tokenizer)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the tokens, the longest first."""
    by_length = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length)) or r"(?!)")


def probe(*roles: str) -> list[Message]:
    """Return a conversation with a short text for each role."""
    return [{"role": role, "content": f"The {role} speaks."} for role in roles]


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _placeholder(messages: Sequence[Message], mark: str = PLACEHOLDER) -> str:
    """Return a text that no message contains."""
    while any(mark in turn["content"] for turn in messages):
        mark += "x"
    return mark
