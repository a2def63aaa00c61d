"""Render conversations with a chat template, all on the same date."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from colab_utils import limits
from colab_utils.data.tokens.tools import Tool, probe_tools, uniform
from colab_utils.data.tokens.vocabulary import added_tokens, any_of, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row

PLACEHOLDER = "qxzplaceholder"
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
    """Render conversations with one tokenizer, all on the same date.

    Templates may write today's date. All renderings use the date of this object, so
    that they can be compared. A template that can switch thinking off does so, in
    training as in generation, except for rows whose answers contain thinking.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self._date = datetime.now().strftime
        self.template()  # raises the error of several templates without a default
        self._takes: dict[str, bool] = {}
        self.special = any_of(special_tokens(tokenizer))
        self.added = any_of(added_tokens(tokenizer))
        # For each template, what finds the tokens that end an answer (see spans.py).
        self.ends: dict[str, re.Pattern[str]] = {}

    def template(self, tools: Sequence[Tool] | None = None) -> str:
        """Return the chat template; some models have another one for tools.

        Raises BadTemplate if there are several, without a default.
        """
        try:
            return self.tokenizer.get_chat_template(
                tools=cast(Any, list(tools) if tools else None)
            )
        except ValueError as error:
            why = "is one of several without a default"
            raise BadTemplate(self.name, why) from error

    def variables(self, thinking: bool = False) -> dict[str, Any]:
        """Return the variables that a template gets besides the messages."""
        return {"strftime_now": self._date, "enable_thinking": thinking}

    def render(
        self,
        messages: Sequence[Message],
        prompt: bool = False,
        tools: Sequence[Tool] | None = None,
        thinking: bool = False,
    ) -> str:
        """Return the text of a conversation; `prompt` adds the generation prompt.

        Raises BadTemplate if the template rejects the messages, and TimeoutError if
        it takes more than 10 s.
        """
        try:
            with limits.seconds(10, f"The chat template of {self.name}"):
                text = self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=cast(Any, list(tools) if tools else None),
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **self.variables(thinking),
                )
        except TimeoutError:
            raise
        except Exception as error:  # a template can raise any error
            why = f"rejects these messages ({error})"
            raise BadTemplate(self.name, why) from error
        return cast(str, text)

    def takes_system(self) -> bool:
        """Return whether the template writes a system message into a conversation.

        Some templates raise an error for one, and some leave it out.
        """
        if "system" not in self._takes:
            turns = probe("user", "assistant")
            system = {"role": "system", "content": PLACEHOLDER}
            self._takes["system"] = self._writes([system, *turns], [PLACEHOLDER])
        return self._takes["system"]

    def takes_tools(self) -> bool:
        """Return whether the template writes tools, their calls and their results.

        Llama 2's template takes none of them.
        """
        if "tools" not in self._takes:
            words = [PLACEHOLDER + part for part in ("name", "argument", "result")]
            turns, tool = probe_tools(*words)
            found = [*words, turns[-1]["content"], tool["function"]["description"]]
            self._takes["tools"] = self._writes(turns, found, [tool])
        return self._takes["tools"]

    def takes_text_beside_calls(self) -> bool:
        """Return whether the template writes the text of a turn that calls a tool."""
        if "text" not in self._takes:
            turns, tool = probe_tools("look", "Lima", "maple")
            turns[1] = {**turns[1], "content": PLACEHOLDER}
            self._takes["text"] = self._writes(turns, [PLACEHOLDER], [tool])
        return self._takes["text"]

    def _writes(
        self,
        messages: Sequence[Message],
        texts: Sequence[str],
        tools: Sequence[Tool] | None = None,
    ) -> bool:
        """Return whether all of the texts are in the rendered messages."""
        try:
            text = self.render(messages, tools=tools)
        except BadTemplate:
            return False
        return all(part in text for part in texts)

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages as the template takes them.

        A system message that it doesn't take is put in front of the first user turn,
        with an empty line in between. Tool calls get one form for all templates.
        """
        roles = [turn["role"] for turn in messages[:2]]
        if roles == ["system", "user"] and not self.takes_system():
            first, *rest = messages
            text = f"{first['content']}\n\n{rest[0]['content']}"
            messages = [{**rest[0], "content": text}, *rest[1:]]
        return uniform(messages)


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Put the row's line in front of a ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        line = row.get("line", "?")
        raise ValueError(f"The row of line {line}: {error}") from error


def probe(*roles: str) -> list[Message]:
    """Return a conversation with a short text for each role."""
    return [{"role": role, "content": f"The {role} speaks."} for role in roles]
