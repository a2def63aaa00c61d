"""Find in the text of a conversation what the assistant writes.

A template with `{% generation %}` tags says itself what to train. For all others, each
answer is found by rendering the conversation again with a placeholder in its place: the
text after the placeholder is what follows the answer in the real conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colab_utils.data.tokens.rendering import (
    PLACEHOLDER,
    BadTemplate,
    Conversations,
    probe,
)
from colab_utils.data.tokens.tools import Tool, texts_of, with_text
from colab_utils.data.tokens.vocabulary import added_tokens, any_of

if TYPE_CHECKING:
    from colab_utils.data.schema import Message

TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]  # the first character, and the one after the last


class Conversation:
    """The text of prepared messages, and the spans in it that the assistant writes."""

    def __init__(
        self,
        chats: Conversations,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
    ) -> None:
        self.chats, self.messages, self.tools = chats, list(messages), tools
        self.thinking = any(map(_thinks, messages))
        self.text = self.render(self.messages)

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return the text of messages, with the tools of this conversation."""
        return self.chats.render(messages, prompt, self.tools, self.thinking)

    def trained_spans(self) -> list[Span]:
        """Return the spans that are trained.

        They are the answers with what ends them, except those of weight 0.
        """
        answers = [
            i for i, turn in enumerate(self.messages) if turn["role"] == "assistant"
        ]
        skipped = [i for i in answers if self.messages[i].get("weight") == 0]
        if not TAG.search(self.chats.template(self.tools)):
            return [self.answer_span(i) for i in answers if i not in skipped]
        spans = self._tagged_spans()
        if not skipped:
            return spans
        kept = [self.answer_span(i) for i in answers if i not in skipped]
        return _without(spans, list(map(self.answer_span, skipped)), kept)

    def _tagged_spans(self) -> list[Span]:
        """Return the spans between the template's `generation` tags."""
        from transformers.utils.chat_template_utils import render_jinja_template

        names = self.chats.tokenizer.special_tokens_map
        rendered: Any = render_jinja_template(
            conversations=[self.messages],
            tools=list(self.tools) if self.tools else None,
            chat_template=self.chats.template(self.tools),
            return_assistant_tokens_mask=True,
            **(self.chats.variables(self.thinking) | names),
        )
        _, (spans,) = rendered
        return list(spans)

    def answer_span(self, i: int) -> Span:
        """Return the span of the answer at index `i` and of what ends it.

        The answer begins where the generation prompt ends.
        """
        mark = _placeholder(self.messages)
        head, tail = self._around(self.messages, i, mark)
        start, end = self._start(i, head, mark), len(self.text) - len(tail)
        calls = bool(self.messages[i].get("tool_calls"))
        after = tail
        if i + 1 < len(self.messages):
            _, last = self._around(self.messages[: i + 1], i, mark)
            after = tail[: shared(tail, last)]
        length = self._end_length(after, calls)
        # What closes a call depends on its last argument: `"}}` or `3}}`.
        fixed, limit = (tail[length:], end + length) if calls else (tail, end)
        if start > limit or not self.text.endswith(fixed):
            raise BadTemplate(
                self.chats.name, "writes an answer in a way that depends on its text"
            )
        return start, end + length

    def reply_span(self, i: int) -> Span:
        """Return the span from the answer at index `i` to the end of the text."""
        mark = _placeholder(self.messages)
        head, _ = self._around(self.messages, i, mark)
        return self._start(i, head, mark), len(self.text)

    def _start(self, i: int, head: str, mark: str) -> int:
        """Return where the answer at index `i` starts, after the generation prompt."""
        if i == 0:
            raise ValueError(
                "The conversation begins with an answer, not with a prompt."
            )
        prompt = self.render(self.messages[:i], prompt=True)
        if head.startswith(prompt) and self.text.startswith(prompt):
            return len(prompt)
        return self._header_end(head, i, mark)

    def _around(
        self, messages: Sequence[Message], i: int, mark: str
    ) -> tuple[str, str]:
        """Return the text before and after the message at index `i`.

        The text after a call of a tool begins after its last argument.
        """
        marked = list(messages)
        marked[i] = with_text(marked[i], mark)
        head, found, tail = self.render(marked).partition(mark)
        if marked[i].get("tool_calls"):
            tail = tail.rpartition(mark)[2]
        if not found or mark in tail:
            raise BadTemplate(
                self.chats.name, "does not write each message exactly once"
            )
        return head, tail

    def _header_end(self, head: str, i: int, mark: str) -> int:
        """Return where the text and the prompt of the answer at index `i` part.

        A generation prompt may begin the answer: some open a `<think>` there.
        """
        between, prompted = self.headers(i, mark)
        before = len(head) - len(between)  # where the message before ends
        length = shared(between, prompted)
        if length < min(len(between), len(prompted)):
            # `<tool_call>` and the prompt's `<think>` share their first character.
            length = self._word_start(between, length)
        start = shared(self.text, head[: before + length])
        if start < before:
            raise BadTemplate(
                self.chats.name, "writes a prompt in a way that depends on the answer"
            )
        return start

    def _word_start(self, text: str, end: int) -> int:
        """Return where the word or token that `end` cuts begins."""
        tokens = [m.end() for m in self.chats.added.finditer(text) if m.end() <= end]
        word = len(re.sub(r"\S+$", "", text[:end]))
        return max([word, *tokens])

    def headers(self, i: int, mark: str = PLACEHOLDER) -> tuple[str, str]:
        """Return the text before the answer at index `i`, and the end of its prompt.

        Both begin after the message before: a template may render what comes before in
        another way when the answer is missing.
        """
        asked = _placeholder(self.messages, "wxzquestion")
        marked = list(self.messages)
        marked[i - 1] = with_text(marked[i - 1], asked)
        head, _ = self._around(marked, i, mark)
        prompt = self.render(marked[:i], prompt=True)
        once = not marked[i - 1].get("tool_calls")
        if (once and not head.count(asked) == prompt.count(asked) == 1) or (
            asked not in head or asked not in prompt
        ):
            raise BadTemplate(
                self.chats.name, "does not write each message exactly once"
            )
        return head.rpartition(asked)[2], prompt.rpartition(asked)[2]

    def _end_length(self, tail: str, calls: bool) -> int:
        """Return how many characters after an answer end it.

        The first special token does, with those that follow it without a gap. Without a
        special token it is all text but the white space at the end. After a call of a
        tool, the tokens that end other answers come first: a call may have special
        tokens of its own.
        """
        ends = [self._call_end()] if calls else []
        for token in (*ends, self.chats.special, self.chats.added):
            if found := token.search(tail):
                end = found.end()
                while following := token.match(tail, end):
                    end = following.end()
                return end
        return len(tail.rstrip())

    def _call_end(self) -> re.Pattern[str]:
        """Return a pattern that finds the tokens that end answers without a call."""
        template = self.chats.template(self.tools)
        if template not in self.chats.ends:
            tokens = end_of_turn(self.chats, self.tools)
            self.chats.ends[template] = any_of(tokens)
        return self.chats.ends[template]


def missing_header(chats: Conversations) -> str:
    """Return what the template writes before an answer, but in no prompt.

    It is empty if there is a generation prompt. A space before the answer belongs
    to the answer. Raises BadTemplate if the template can't be used for training.
    """
    messages = probe("user", "assistant")
    if chats.render(messages[:1]) != chats.render(messages[:1], prompt=True):
        return ""
    between, prompted = Conversation(chats, messages).headers(1)
    if not between.startswith(prompted):
        return ""
    header = between.removeprefix(prompted)
    return header.rstrip(" ") if header.strip() else ""


def end_of_turn(chats: Conversations, tools: Sequence[Tool] | None = None) -> list[str]:
    """Return the special tokens that end an answer; none if there are none.

    Raises BadTemplate if the template can't be used for training.
    """
    messages = probe("user", "assistant")
    chat = Conversation(chats, messages, tools)
    text, spans = chat.text, chat.trained_spans()
    if len(spans) != 1 or messages[1]["content"] not in text[slice(*spans[0])]:
        raise BadTemplate(
            chats.name, "has `generation` tags that do not enclose an answer"
        )
    tail = text[slice(*spans[0])].partition(messages[1]["content"])[2]
    found = chats.special.findall(tail) or chats.added.findall(tail)
    # The tokenizer may cut an added token that it normalizes into pieces.
    tokenizer = chats.tokenizer
    real = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = added_tokens(tokenizer)
    return [token for token in found if ids[token] in real]


def _thinks(turn: Message) -> bool:
    """Return whether a turn of the assistant contains thinking."""
    return turn["role"] == "assistant" and "</think>" in (turn["content"] or "")


def _without(spans: list[Span], skipped: list[Span], kept: list[Span]) -> list[Span]:
    """Return the spans without the skipped answers.

    A span that has no part of a kept answer is left out whole: it may also have the
    header of a skipped one.
    """
    found = []
    for start, end in spans:
        if not any(map(lambda other: _overlap((start, end), other), skipped)):
            found.append((start, end))
        elif any(map(lambda other: _overlap((start, end), other), kept)):
            for first, last in skipped:
                if start < first:
                    found.append((start, min(end, first)))
                start = max(start, last)
            if start < end:
                found.append((start, end))
    return found


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many characters or tokens two sequences share at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _placeholder(messages: Sequence[Message], mark: str = PLACEHOLDER) -> str:
    """Return a text that no message contains."""
    texts = texts_of(list(messages))
    while any(mark in text for text in texts):
        mark += "x"
    return mark
