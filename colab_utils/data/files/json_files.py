"""Read JSON files row by row: JSON Lines, one list, one object, objects in a row.

The content decides, not the name of the file. Lists are decoded element by element, so
that a long one needs little memory. After a broken row, reading goes on with the next.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator

from colab_utils.data.files import json_objects
from colab_utils.data.files.cells import is_conversation
from colab_utils.data.files.json_lists import (
    CUT,
    NOT_JSON,
    PIECE,
    Scanner,
    after_space,
    decoder,
    reason_of,
)
from colab_utils.data.files.streams import Lines, Notes, Numbered, Text
from colab_utils.data.schema import Rejected, escape, reject

# A list that is one row: it holds messages, not rows.
MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')


def read(reopen: Callable[[], Text], key: str = "") -> Iterator[Numbered | Rejected]:
    """Yield (line, row) for each row, and a rejected row for each broken one.

    `key` names the list to read in a file that is one object. Raises ValueError when
    there is no such list, or when several may be meant.
    """
    items = _values(reopen())
    first, second = next(items, None), next(items, None)
    if isinstance(first, tuple) and isinstance(first[1], dict) and second is None:
        text = reopen()
        whole = "".join(iter(lambda: text.read(PIECE), ""))
        rows = json_objects.find_rows(whole, key, text.notes)
        yield from (first,) if rows is None else rows
    elif key:
        raise ValueError(f"The file is not one JSON object, so it has no {key}.")
    else:
        yield from (item for item in (first, second) if item)
        yield from items


def _values(text: Text) -> Iterator[Numbered | Rejected]:
    start = text.read(PIECE)
    while not start.strip() and (more := text.read(PIECE)):
        start += more
    text.unread(start)
    if start.lstrip().startswith("[") and not MESSAGES.match(start):
        scanner = Scanner(text.read, text.notes)
        while scanner.next_sign() == "[":
            yield from scanner.list_elements()
        text.unread(scanner.rest())
        yield from _lines(text, scanner.line)
    else:
        yield from _lines(text, 1)


def _lines(text: Text, first: int) -> Iterator[Numbered | Rejected]:
    """Read one value a line; a value that is not complete goes on in the next lines."""
    lines = Lines(text, first)
    decode = decoder(text.notes, lambda: lines.number).raw_decode
    for line in lines:
        if line.isspace():
            continue
        try:
            value, end = decode(line)
        except (ValueError, RecursionError):
            end = 0
        if end and line[end:].strip(" \t\r\n") == "":
            yield from _rows_of(value, lines.number)
        else:
            yield from _over_lines(line, lines, text.notes)


def _rows_of(value: object, line: int) -> Iterator[Numbered]:
    """Yield the elements of a list of rows; other values are one row."""
    rows = value if isinstance(value, list) else []
    if rows and all(isinstance(r, dict) for r in rows) and not is_conversation(rows):
        yield from ((line, row) for row in rows)
    else:
        yield line, value


def _over_lines(line: str, lines: Lines, notes: Notes) -> Iterator[Numbered | Rejected]:
    """Read a value that ends in a later line, or several values of one line.

    A line that begins neither is rejected; the lines after it are put back.
    """
    number, text = lines.number, line
    decode = decoder(notes, lambda: number).raw_decode
    while True:
        try:
            start = after_space(text)
            value, end = decode(text, start)
        except json.JSONDecodeError as error:
            cut = not text[error.pos :].strip()
            more = lines.take(max(1, text.count("\n"))) if cut else []
            if more:
                text += "".join(more)
                continue
            reason = CUT if cut else reason_of(error)
        except (ValueError, RecursionError) as error:
            reason = reason_of(error)
        else:
            rest, newline, below = text[end:].partition("\n")
            after = number + text.count("\n", 0, end)
            if not rest.strip(" \t\r,"):
                lines.put_back(_split(below), after + 1)
                yield from _rows_of(value, number + text.count("\n", 0, start))
                return
            if isinstance(value, dict) and rest.lstrip(" \t\r,").startswith("{"):
                lines.put_back(_split(rest + newline + below), after)
                yield from _rows_of(value, number)
                return
            reason = f"{NOT_JSON}: there is text after the value: {rest.strip()[:20]}"
        break
    others = _split(text)[1:]
    if reason != CUT or any(map(_is_object, others)):
        lines.put_back(others, number + 1)
    yield reject(number, escape(reason), line.strip())


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line.strip().rstrip(",")), dict)
    except (ValueError, RecursionError):
        return False


def _split(text: str) -> list[str]:
    # Not splitlines(): a JSON string may contain U+2028.
    return list(io.StringIO(text, newline="\n"))
