"""Decode a JSON list element by element, while its text is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from colab_utils.data.files.streams import Notes, Numbered
from colab_utils.data.schema import Rejected, escape, reject

NOT_JSON = "not JSON"  # the start of a reason, for which `load` gives advice
CUT = f"{NOT_JSON}: the file ends within this row; is it complete?"
TWICE = "a key occurs twice in an object, its last value is used"

PIECE = 1 << 20  # the number of characters that are read at a time
SPACE = re.compile(r"[\s,]*")
ROW_START = re.compile(r'\{\s*"((?:[^"\\]|\\.){0,200})"')


def decoder(notes: Notes, line: Callable[[], int]) -> json.JSONDecoder:
    """Return a decoder that notes keys which occur twice in an object."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            notes.add(TWICE, line())
        return found

    return json.JSONDecoder(object_pairs_hook=as_dict)


def reason_of(error: Exception) -> str:
    """Return the reason for a row that raised an error while it was decoded."""
    if isinstance(error, RecursionError):
        return f"{NOT_JSON}: nested too deeply"
    return f"{NOT_JSON}: {escape(str(error))}"


def after_space(text: str, at: int = 0) -> int:
    """Return the position of the next character that is not a space or a comma."""
    space = SPACE.match(text, at)
    return space.end() if space else at


class Scanner:
    """Decode the elements of a list one after another, while its text is read.

    `read` returns up to that many characters more. `line` is the current line.
    """

    def __init__(self, read: Callable[[int], str], notes: Notes, line: int = 1):
        self.line = line
        self._read, self._buffer, self._at = read, "", 0
        self._decode = decoder(notes, lambda: self.line).raw_decode
        self._columns: list[str] = []  # those of the first row

    def rest(self) -> str:
        """Return the text that was read and not decoded."""
        return self._buffer[self._at :]

    def next_sign(self) -> str:
        """Skip space and commas; return the next character, or "" at the end."""
        while True:
            self._move(after_space(self._buffer, self._at))
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_on():
                return ""

    def list_elements(self) -> Iterator[Numbered | Rejected]:
        """Yield the elements of the list that begins here, and move behind its end.

        After a broken element, reading goes on with the next object that begins with a
        column of the first row.
        """
        self.next_sign()
        self._move(self._at + 1)
        reason = ""
        while (sign := self.next_sign()) != "]":
            if not sign:
                if reason != CUT:
                    ends = f"{NOT_JSON}: the list has no end; is the file complete?"
                    yield reject(self.line, ends, "")
                return
            try:
                row, end = self._value()
            except (ValueError, RecursionError) as error:
                if not reason or self._begins_row():
                    reason = CUT if self._ends_in(error) else reason_of(error)
                    yield reject(self.line, reason, self.rest()[:200])
                self._find_object()
                continue
            if not reason or self._is_row(row):
                reason = ""
                yield self.line, row
                self._move(end)
            else:
                self._find_object()
            if not self._columns and isinstance(row, dict):
                self._columns = list(row)
        self._move(self._at + 1)

    def _begins_row(self) -> bool:
        """Return whether an object begins here as the first row begins."""
        found = ROW_START.match(self._buffer, self._at)
        return bool(found and found[1] in self._columns[:1])

    def _is_row(self, value: object) -> bool:
        """Return whether a value has at least half of the first row's columns.

        Messages inside of a broken row have others.
        """
        if not isinstance(value, dict):
            return False
        return 2 * len(value.keys() & set(self._columns)) >= len(self._columns)

    def _find_object(self) -> None:
        """Move to the next object that may be a row, or to the end."""
        self._move(self._at + 1)
        while True:
            for found in ROW_START.finditer(self._buffer, self._at):
                if not self._columns or found[1] in self._columns:
                    self._move(found.start())
                    return
            # The end of the buffer may be the start of an object.
            self._move(max(self._at, len(self._buffer) - 300))
            if not self._read_on():
                self._move(len(self._buffer))
                return

    def _value(self) -> tuple[object, int]:
        """Return the value that begins here, and the position of its end."""
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # Some errors stand a little before the end: in -Infinity, for example.
                near = error.pos > len(self._buffer) - 16
                if not (near or self._ends_in(error)) or not self._read_on():
                    raise
                continue
            # A number at the end of a piece may go on in the next.
            is_whole = isinstance(value, (dict, list, str)) or end < len(self._buffer)
            if is_whole or not self._read_on():
                return value, end

    def _ends_in(self, error: Exception) -> bool:
        """Return whether the text ends within the value that raised the error."""
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated")
            or not self._buffer[error.pos :].strip()
        )

    def _move(self, to: int) -> None:
        self.line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _read_on(self) -> bool:
        """Read as much again as is not decoded yet; return False at the end."""
        rest = self.rest()
        more = self._read(max(PIECE, len(rest)))
        self._buffer, self._at = rest + more, 0
        return bool(more)
