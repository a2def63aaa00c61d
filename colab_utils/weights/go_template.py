"""Write a chat template in the language of Ollama: Go's text/template.

The parts of a template are cut out of conversations that it renders: what it writes
before, between and after the turns. So one program fits every template that writes one
turn after another, and the rendered probes show whether it does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils.data.tokens.rendering import BadTemplate, Conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data import Message

SYSTEM = "qxzsystem"
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Parts:
    """What a chat template writes around the turns of a conversation."""

    begin: str  # before the first question, without a system message
    system: tuple[str, str]  # before and after a system message
    prompt: str  # after the last question: the generation prompt
    answer: str  # between a question and its answer
    end: str  # between an answer and the next question

    @property
    def spaces(self) -> tuple[str, str] | None:
        """The spaces around an answer that the model generates, or None.

        Llama 2's format has them: `[/INST] Lima. </s>`. Ollama sends an answer back as
        the model wrote it, with its spaces.
        """
        if self.answer == self.prompt or self.answer.rstrip(" ") != self.prompt:
            return None
        after = self.end[: len(self.end) - len(self.end.lstrip(" "))]
        return self.answer[len(self.prompt) :], after

    def render(self, messages: list[Message]) -> str:
        """Return a conversation that ends with a question, as the program writes it."""
        text = self.begin
        if messages[0]["role"] == "system":
            before, after = self.system
            text = before + messages[0]["content"] + after
            messages = messages[1:]
        before_turn = {"user": self.end, "assistant": self.answer}
        for i, turn in enumerate(messages):
            text += (before_turn[turn["role"]] if i else "") + turn["content"]
        return text + self.prompt

    def program(self, bos: str) -> str:
        """Return the Go template; Ollama writes the BOS token itself if it is given."""
        begin, before = (
            text.removeprefix(bos) for text in (self.begin, self.system[0])
        )
        end, answer = self.end, _text(self.answer) + "{{ .Content }}"
        if self.spaces:
            first, last = self.spaces
            end = end[len(last) :]
            own = f"(eq (slice .Content 0 {len(first)}) {json.dumps(first)})"
            answer = (
                _text(self.prompt)
                + f"{{{{ if and .Content {own} }}}}{{{{ .Content }}}}{{{{ else }}}}"
                + _text(first)
                + "{{ .Content }}"
                + _text(last)
                + "{{ end }}"
            )
        return "\n".join(
            [
                '{{- $last := "" }}',
                "{{- range .Messages }}",
                '{{- if eq .Role "user" }}',
                f'{{{{- if eq $last "assistant" }}}}{_text(end)}',
                f'{{{{- else if eq $last "" }}}}{{{{- if $.System }}}}{_text(before)}'
                f"{{{{ $.System }}}}{_text(self.system[1])}"
                f"{{{{ else }}}}{_text(begin)}{{{{ end }}}}",
                "{{- end }}{{ .Content }}",
                '{{- $last = "user" }}',
                '{{- else if eq .Role "assistant" }}',
                "{{-" + answer[2:],
                '{{- $last = "assistant" }}',
                "{{- end }}",
                "{{- end }}",
                f'{{{{- if eq $last "user" }}}}{_text(self.prompt)}{{{{ end }}}}',
            ]
        )


def _text(text: str) -> str:
    """Return Go template code that writes a text."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def find_parts(tokenizer: Tokenizer) -> Parts | None:
    """Return the parts of a tokenizer's chat template; None if it does not have them.

    Such a template writes a turn in another way when it is the last one, or cuts text
    off. A system message that it does not take stands in front of the first question.
    """
    try:
        chats = Conversations(tokenizer)
        plain, system = (_cut(chats, _probe(2, with_system=s)) for s in (False, True))
        if plain is None or system is None:
            return None
        begin, answer, end, prompt = plain
        parts = Parts(begin, (system[0], system[1]), prompt, answer, end)
        for questions in (1, 2, 3):
            for with_system in (False, True):
                chat = _probe(questions, with_system)
                if parts.render(chat) != chats.render(chats.prepare(chat), prompt=True):
                    return None
    except BadTemplate:
        return None
    return parts


def _probe(questions: int, with_system: bool) -> list[Message]:
    """Return a conversation that ends with a question; no content is in another."""
    turns = [ROLES[i % 2] for i in range(2 * questions - 1)]
    chat = [{"role": role, "content": f"qxz{role}{i}."} for i, role in enumerate(turns)]
    system = [{"role": "system", "content": SYSTEM}] if with_system else []
    return [*system, *chat]


def _cut(chats: Conversations, chat: list[Message]) -> list[str] | None:
    """Return the text before, between and after the contents; None if one lacks."""
    rest, found = chats.render(chats.prepare(chat), prompt=True), []
    for turn in chat:
        before, content, rest = rest.partition(turn["content"])
        if not content:
            return None
        found.append(before)
    return [*found, rest]
