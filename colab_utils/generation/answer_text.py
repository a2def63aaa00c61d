"""Turn the tokens of one answer into text, while they are generated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """Return the strings that end an answer, without empty ones.

    Raises ValueError for anything except a string, or a list or tuple of strings.
    """
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(
        isinstance(s, str) for s in stops
    ):
        raise ValueError(
            f"stop = {stop!r}, but it must be a string or a list of strings."
        )
    return [s for s in stops if s]


class AnswerText:
    """The text of one answer, which grows with each token until it is `done`.

    It ends before one of the ids `stop_tokens`, before a string in `stop`, or after
    `max_tokens` tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_tokens: Collection[int],
        stop: list[str],
        max_tokens: int,
    ) -> None:
        self.tokenizer, self.stop_tokens = tokenizer, frozenset(stop_tokens)
        self.stop, self.tokens_left = stop, max_tokens
        self.done = False
        self._shown = ""
        # No later token changes the settled text. The pending tokens begin with its
        # last word, of `_overlap` characters.
        self._settled, self._overlap = "", 0
        self._pending: list[int] = []

    def add(self, token: int) -> bool:
        """Append a token, unless the answer is done; return whether it is done now."""
        if self.done or token in self.stop_tokens:
            self.done = True
            return True
        self._pending.append(token)
        self.tokens_left -= 1
        self.done = not self.tokens_left or bool(self.stop and self._until_stop()[1])
        return self.done

    def decode(self) -> str:
        """Return all tokens as text, and decode only those after the settled text.

        A token of three letters or more contains whole characters and no space that
        decoding removes. Later tokens therefore don't change its text.
        """
        text = self._settled + self._decode(self._pending)[self._overlap :]
        word = self._decode(self._pending[-1:])
        if len(word.strip()) > 2 and word.strip().isalpha():
            self._settled, self._overlap = text, len(word)
            self._pending = self._pending[-1:]
        return text

    def _decode(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return cast("str", text)  # a list only for a batch

    def _until_stop(self) -> tuple[str, bool]:
        """Return the text before the first stop string, and whether there is one."""
        text = self.decode()
        found = [i for s in self.stop if (i := text.find(s)) >= 0]
        return (text[: min(found)], True) if found else (text, False)

    def finish(self, strip: bool = True) -> str:
        """End the answer, and return its text, by default without outer spaces."""
        self.done = True
        text, _ = self._until_stop()
        return text.strip() if strip else text

    def stable_text(self) -> str:
        """Return the start of the text, as far as no later token can change it."""
        text, _ = self._until_stop()
        if not self.done:
            # The end may be half a character, or the beginning of a stop string.
            text = text.rstrip("\ufffd")
            begun = (s[:n] for s in self.stop for n in range(len(s) - 1, 0, -1))
            cut = max((len(part) for part in begun if text.endswith(part)), default=0)
            text = text[: len(text) - cut]
        # An invalid byte also changes the text before it. Text that was returned stays.
        if text.strip().startswith(self._shown):
            self._shown = text.strip()
        return self._shown
