"""Find the rows in a JSON file that is one object.

Programs write them in several ways: {"data": [row, row]}, {"id": row}, a list for each
split, {"column": [cell, cell]}, pandas' {"column": {"0": cell}}, and pandas'
{"columns": [names], "data": [[cell, cell]]}.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from colab_utils.data.files.cells import is_conversation
from colab_utils.data.files.json_lists import Scanner, after_space
from colab_utils.data.files.streams import Notes, Numbered
from colab_utils.data.schema import Rejected, escape

Items = Iterable[Numbered | Rejected]
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev"}
SPLITS |= {"eval", "evaluation"}
# An object with one of these texts is a row, also if it has a list of objects.
TEXTS = {"prompt", "question", "instruction", "input", "text", "query"}
TEXTS |= {"answer", "output", "response", "completion"}


@dataclass(frozen=True)
class Member:
    """A member of an object: its key, its value, and where the value begins."""

    key: str
    value: Any
    start: int


def find_rows(text: str, key: str, notes: Notes) -> Items | None:
    """Return the rows of the object in `text`, or None if it is a row itself.

    `key` names the member that holds the rows, as in "train" or "data/rows"; "" finds
    it. Raises ValueError when there is no such member, or when several may be meant.
    """
    start = after_space(text)
    for name in filter(None, key.split("/")):
        inner = {member.key: member for member in _members(text, start)}
        if name not in inner:
            found = ", ".join(map(escape, list(inner)[:12])) or "no keys"
            raise ValueError(f"{notes.name} has no {escape(name)}, but {found}.")
        start = inner[name].start
    if text[start : start + 1] == "[":
        return _elements(text, start, notes)
    return _rows(text, start, notes)


def _rows(text: str, start: int, notes: Notes) -> Items | None:
    members = _members(text, start)
    if not members or _is_row(members):
        return None
    if columns := _columns({member.key: member.value for member in members}):
        print(f"{notes.name}: read by columns, the line is the number of the row")
        return enumerate(columns, start=1)
    lists = [member for member in members if _is_rows(member.value)]
    if lists:
        _announce(lists, members, notes)
        return (row for one in lists for row in _elements(text, one.start, notes))
    if all(isinstance(member.value, dict) for member in members):
        return _by_key(text, members, notes)
    return None


def _is_row(members: list[Member]) -> bool:
    return any(
        is_conversation(member.value)
        or (member.key.lower() in TEXTS and isinstance(member.value, str))
        for member in members
    )


def _is_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) for row in value)
    )


def _announce(lists: list[Member], members: list[Member], notes: Notes) -> None:
    """Print which lists are read; raises ValueError if several may be meant."""
    sizes = ", ".join(f"{escape(m.key)} ({len(m.value):,} rows)" for m in lists)
    if len(lists) > 1 and not all(m.key.lower() in SPLITS for m in lists):
        raise ValueError(
            f"{notes.name} has several lists of objects: {sizes}. Name the one to "
            f"read, as in {notes.name}/{escape(lists[0].key)}."
        )
    others = [escape(m.key)[:40] for m in members if m not in lists]
    line = f"{notes.name}: read {sizes}"
    if len(lists) > 1:
        line += f"; to read one split: {notes.name}/{escape(lists[0].key)}"
    print(line + (f"; not used: {', '.join(others[:12])}" if others else ""))


def _columns(table: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of a table by columns, or None if it is something else."""
    names, data = table.get("columns"), table.get("data")
    if isinstance(names, list) and isinstance(data, list):  # pandas' "split"
        same = all(isinstance(row, list) and len(row) == len(names) for row in data)
        if same:
            return [dict(zip(map(str, names), row, strict=True)) for row in data]
    cells = list(table.values())
    if all(isinstance(column, dict) for column in cells):  # pandas' "columns"
        index = list(cells[0])
        numbers = [str(number) for number in range(len(index))]
        if not index or index != numbers or any(list(c) != index for c in cells):
            return None
        cells = [list(column.values()) for column in cells]
    elif not all(isinstance(c, list) and not _is_rows(c) for c in cells):
        return None
    if len({len(column) for column in cells}) != 1:
        return None
    return [dict(zip(table, row, strict=True)) for row in zip(*cells, strict=True)]


def _by_key(text: str, members: list[Member], notes: Notes) -> Items | None:
    """Return the rows of {"id": row}, or of an object that is one level deeper."""
    if len(members) == 1:
        return _rows(text, members[0].start, notes)
    if all(member.key.lower() in SPLITS for member in members):
        parts = [_rows(text, member.start, notes) for member in members]
        if all(part is not None for part in parts):
            names = ", ".join(member.key for member in members)
            print(f"{notes.name}: read the splits {names}")
            return (row for part in parts for row in part or ())
    deeper = [(m, part) for m in members for part in _lists_in(text, m)]
    if len(deeper) == 1:
        ((member, part),) = deeper
        _announce([part], [*_members(text, member.start)], notes)
        return _elements(text, part.start, notes)
    print(
        f"{notes.name}: each of its {len(members):,} keys has a row; the key is unused"
    )
    return _numbered(text, members)


def _lists_in(text: str, member: Member) -> list[Member]:
    """Return the lists of rows in an object that is not a row itself."""
    inner = _members(text, member.start)
    return [] if _is_row(inner) else [one for one in inner if _is_rows(one.value)]


def _numbered(text: str, members: list[Member]) -> Iterator[Numbered]:
    line, at = 1, 0
    for member in members:
        line, at = line + text.count("\n", at, member.start), member.start
        yield line, member.value


def _elements(text: str, start: int, notes: Notes) -> Iterator[Numbered | Rejected]:
    line = 1 + text.count("\n", 0, start)
    return Scanner(io.StringIO(text[start:]).read, notes, line).list_elements()


def _members(text: str, start: int) -> list[Member]:
    """Return the members of the object that begins at `start`."""
    decode = json.JSONDecoder().raw_decode
    found, at = [], after_space(text, start + 1)
    while text[at : at + 1] == '"':
        key, at = decode(text, at)
        start = after_space(text, after_space(text, at) + 1)  # after the colon
        value, at = decode(text, start)
        found.append(Member(key, value, start))
        at = after_space(text, at)
    return found
