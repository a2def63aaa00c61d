"""Read CSV and TSV files row by row, also those that break the format's rules."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator

from colab_utils.data.files.streams import Lines, Notes, Numbered, Text
from colab_utils.data.schema import Rejected, escape, reject

DELIMITERS = ",;\t|"
# Excel's way to name the delimiter.
SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
UNCLOSED = "a quote is opened and not closed in this row"
BACKSLASH = '\\"'
LONG = 100  # lines of a row
EARLY = 1024  # lines after which a row is checked before it ends


class _Unclosed(csv.Error):
    """A quote that is not closed in its own row."""


def read(text: Text, suffix: str) -> Iterator[Numbered | Rejected]:
    """Yield (line, row) for each row, and a rejected row for each broken one.

    The number of a row is that of its first line. Raises ValueError when the header
    can't be read.
    """
    csv.field_size_limit(2**31 - 1)
    lines = Lines(text)
    delimiter = _delimiter(lines, suffix)
    table = _Table(lines, delimiter, text.notes)
    return table.rows()


def _delimiter(lines: Lines, suffix: str) -> str:
    """Return the delimiter that the first line names, or that the header has most."""
    for line in lines:
        if not line.strip():
            continue
        if named := SEP_LINE.fullmatch(line):
            return named[1]
        lines.put_back([line], lines.number)
        header = re.sub(r'"[^"]*"?', "", line)
        if suffix == ".tsv" and "\t" in header:
            return "\t"
        return max(DELIMITERS, key=header.count)
    return ","


class _Table:
    def __init__(self, lines: Lines, delimiter: str, notes: Notes) -> None:
        self.lines, self.delimiter, self.notes = lines, delimiter, notes
        self.names: list[str] = []
        self.record: list[str] = []  # the lines of the row that is being read
        self.singles = self.characters = 0  # rows of one line, and their length
        self.multiples = 0  # rows of several lines

    def rows(self) -> Iterator[Numbered | Rejected]:
        """Yield the rows; after a broken one, go on with its second line."""
        while True:
            try:
                yield from self._well_formed()
                return
            except csv.Error as error:
                yield from self._broken(error)

    def _well_formed(self) -> Iterator[Numbered | Rejected]:
        self.record.clear()
        for fields in self._reader():
            line = self.lines.number - len(self.record) + 1
            wrong = self.names and len(fields) != len(self.names)
            if wrong and BACKSLASH in self.record[0]:
                raise csv.Error(f"{len(fields)} fields, the header has others")
            if len(self.record) > 1:
                self._check_record(fields, line)
            else:
                self.singles += 1
                self.characters += len(self.record[0])
            if len(fields) > 1 or "".join(fields).strip():
                yield from self._row(fields, line)
            self.record.clear()

    def _reader(self, escape: str | None = None) -> Iterator[list[str]]:
        return csv.reader(
            self._feed(), delimiter=self.delimiter, strict=True, escapechar=escape
        )

    def _feed(self) -> Iterator[str]:
        """Yield the lines, and keep those of the current row."""
        limit = EARLY
        for line in self.lines:
            self.record.append(line)
            if len(self.record) == limit:
                limit *= 2
                if self._swallows(self.record[1:]):
                    raise _Unclosed(UNCLOSED)
            yield line

    def _check_record(self, fields: list[str], line: int) -> None:
        """Raise _Unclosed if a row of several lines has other rows in it."""
        inner = self.record[1:-1] if len(fields) != len(self.names) else self.record[1:]
        if self._swallows(inner):
            raise _Unclosed(UNCLOSED)
        self.multiples += 1
        if len(self.record) > LONG:
            what = f"rows have more than {LONG} lines; is a quote missing there?"
            self.notes.add(what, line)

    def _swallows(self, lines: list[str]) -> bool:
        """Return whether these lines of one row look like rows themselves.

        A quote that is never closed runs to a stray quote of a later row. The lines
        between are then complete rows, as long as the others of the file. A cell with
        a table in it has such lines, too, but they are shorter.
        """
        lines = [line for line in lines if line.strip()]
        needed = 4 if len(self.names) > 2 else 7
        if self.multiples or self.singles < 10:
            needed *= 2
        if len(self.names) < 2 or len(lines) < needed:
            return False
        length = sum(map(len, lines)) / len(lines)
        usual = self.characters / max(self.singles, 1)
        if self.singles >= 10 and not usual / 2 < length < usual * 2:
            return False
        complete = sum(self._is_complete(line) for line in lines)
        return self._is_complete(lines[-1]) and complete >= 0.9 * len(lines)

    def _is_complete(self, line: str) -> bool:
        """Return whether a line is a row with as many fields as the header."""
        try:
            fields = next(csv.reader([line], delimiter=self.delimiter, strict=True))
        except csv.Error:
            return False
        return len(fields) == len(self.names)

    def _row(self, fields: list[str], line: int) -> Iterator[Numbered | Rejected]:
        count = len(self.names)
        if not count:
            self.names = _header(fields, self.notes.name)
            return
        if not any(fields[count:]):  # empty cells behind the last column
            fields = fields[:count]
        if len(fields) == count:
            yield line, dict(zip(self.names, fields, strict=True))
        else:
            reason = f"{len(fields)} fields, the header has {count}"
            yield reject(line, reason, self.delimiter.join(fields))

    def _broken(self, error: csv.Error) -> Iterator[Numbered | Rejected]:
        """Read the first line of the current row in another way, or reject it."""
        number = self._put_back_record()
        if not self.names:
            raise ValueError(
                f"The header of {self.notes.name} can't be read: {error} (line "
                f"{number})."
            ) from error
        if fields := self._with_backslashes():
            yield from self._row(fields, number)
            return
        line = next(self.lines)
        fields = line.rstrip("\r\n").split("\t")
        if self.delimiter == "\t" and len(fields) == len(self.names):
            yield from self._row(fields, number)  # TSV has no quotes
            return
        reason = UNCLOSED if "unexpected end" in str(error) else str(error)
        yield reject(number, f"not CSV: {reason}", line.rstrip("\r\n"))

    def _put_back_record(self) -> int:
        number = self.lines.number - len(self.record) + 1
        self.lines.put_back(self.record, number)
        return number

    def _with_backslashes(self) -> list[str] | None:
        """Return the row if quotes in its fields are escaped with a backslash."""
        if BACKSLASH not in self.record[0]:
            return None
        self.record.clear()
        try:
            fields = next(self._reader(escape="\\"))
        except (csv.Error, StopIteration):
            fields = []
        if len(fields) == len(self.names):
            return fields
        self._put_back_record()
        return None


def _header(fields: list[str], file: str) -> list[str]:
    names = [name.strip() for name in fields]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(
            f"{file} has two columns of the same name: {escape(twice[0])[:40]}. "
            "Rename one of them."
        )
    return names
