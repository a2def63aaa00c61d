"""The schema of a row of each kind, and rejected rows.

Files bring rows in many formats. `formats.to_row` brings a row of any of them into this
schema, or raises `BadRow` with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, cast

INSTRUCTION = "instruction"
COMPLETION = "completion"
PREFERENCE = "preference"
CLASSIFICATION = "classification"
MIDDLE = "fill-in-the-middle"
KINDS = (INSTRUCTION, COMPLETION, PREFERENCE, CLASSIFICATION, MIDDLE)
# The columns of each kind. They are those that the kind's trainer reads. A row is of
# the first kind of which it has all columns.
COLUMNS = {
    INSTRUCTION: ("messages",),
    PREFERENCE: ("prompt", "chosen", "rejected"),
    MIDDLE: ("prefix", "middle", "suffix"),
    CLASSIFICATION: ("text", "label"),
    COMPLETION: ("text",),
}
_SETS = {kind: frozenset(columns) for kind, columns in COLUMNS.items()}

# {"role": "user", "content": "2 + 2?"}. A turn of the assistant may have `tool_calls`,
# and a `weight` of 0 if it is not trained.
Message = dict[str, Any]


class Row(TypedDict, total=False):
    """A row of one kind, with its line and its labels.

    An instruction row has `messages`, and `tools` if the assistant may call them. A
    preference row has three lists of messages: `prompt`, `chosen`, `rejected`. The
    columns of the other kinds are texts.

    `line` is the row's line in its source. Rows of the same `group` stay on one side of
    a split. Results are also reported by `category`. An empty string means that the row
    has no group or no category.
    """

    messages: list[Message]
    tools: list[dict[str, Any]]
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    text: str
    label: str
    prefix: str
    middle: str
    suffix: str
    line: int
    group: str
    category: str


class BadRow(ValueError):
    """The reason why a row can't be used."""


@dataclass(frozen=True)
class Rejected:
    """A rejected row: its line in the source, the reason, and how the row starts."""

    line: int
    reason: str
    start: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `save` writes them to rejected.jsonl."""
        return {**vars(self)}


def reject(line: int, reason: str, raw: object) -> Rejected:
    """Return a rejected row; of the raw row it keeps 200 characters, as ASCII."""
    try:
        text = raw if isinstance(raw, str) else json.dumps(raw, default=str)
    except RecursionError:
        text = ""
    return Rejected(line, reason, escape(text[:200]))


def reject_row(row: Row, reason: str) -> Rejected:
    """Return a rejected row for a row in the schema, with its line and its text."""
    return reject(row["line"], reason, prompt_of(row) or answer_of(row))


def escape(text: str) -> str:
    """Escape all characters except printable ASCII, so that any terminal shows them."""
    return re.sub("[^ -~]", lambda sign: ascii(sign[0])[1:-1], text)


def kind_of(row: Mapping[str, Any]) -> str:
    """Return the kind of a row in the schema; raises ValueError if it is of none."""
    if "messages" in row:
        return INSTRUCTION  # saves time: most rows are of this kind
    for kind, columns in _SETS.items():
        if columns <= row.keys():
            return kind
    found = ", ".join(map(str, row))
    raise ValueError(f"A row with the columns {found} is of no known kind.")


def said(turn: Message) -> str:
    """Return the text of a turn; a call of a tool is its name and arguments as JSON."""
    if not turn.get("tool_calls"):
        return turn["content"] or ""
    calls = [call["function"] for call in turn["tool_calls"]]
    texts = [turn["content"] or "", *(json.dumps(c, sort_keys=True) for c in calls)]
    return "\n".join(filter(None, texts))


def prompt_of(row: Row) -> str:
    """Return what the model reads before it answers: all text before the last answer.

    It is the text of a row to classify, the text before and after the middle, and ""
    for raw text.
    """
    kind = kind_of(row)
    if kind == CLASSIFICATION:
        return row["text"]
    if kind == MIDDLE:
        return f"{row['prefix']}\n{row['suffix']}"
    if kind == COMPLETION:
        return ""
    turns = row["prompt"] if kind == PREFERENCE else row["messages"][:-1]
    return said(turns[0]) if len(turns) == 1 else "\n".join(map(said, turns))


def answer_of(row: Row) -> str:
    """Return what the model writes: the last answer.

    It is the better answer of a preference row, the label, the middle, and the whole of
    a raw text.
    """
    kind = kind_of(row)
    if kind in (INSTRUCTION, PREFERENCE):
        last: Message = row["messages" if kind == INSTRUCTION else "chosen"][-1]
        return said(last)
    if kind == CLASSIFICATION:
        return row["label"]
    return row["middle" if kind == MIDDLE else "text"]


def texts_of(row: Row) -> list[str]:
    """Return the texts of a row: the contents of messages, and columns of text."""
    if "messages" in row:
        return [turn["content"] for turn in row["messages"] if turn["content"]]
    cells: dict[str, Any] = {**row}
    answers = ("prompt", "chosen", "rejected")
    turns = [turn for name in answers if name in cells for turn in cells[name]]
    found = [turn["content"] for turn in turns if turn["content"]]
    names = ("text", "prefix", "middle", "suffix")
    return found + [str(cells[name]) for name in names if name in cells]


def map_texts(row: Row, change: Callable[[str], str]) -> Row:
    """Return a copy of a row in which every text is changed; labels stay as they are.

    The texts are the contents of all messages, a raw text, a text to classify, and the
    three parts of a row with a middle. Calls of tools are no texts.
    """
    changed = dict(row)
    for name in ("messages", "prompt", "chosen", "rejected"):
        if name in row:
            turns: list[Message] = changed[name]  # type: ignore[assignment]
            changed[name] = [
                {**turn, "content": change(turn["content"])}
                if turn["content"]
                else turn
                for turn in turns
            ]
    for name in ("text", "prefix", "middle", "suffix"):
        if name in row:
            changed[name] = change(str(changed[name]))
    return cast(Row, changed)


def short_answers(rows: list[Row]) -> bool:
    """Return whether exact match can measure the answers.

    It can if at least 95 % of them have at most 30 characters.
    """
    short = sum(len(answer_of(row)) <= 30 for row in rows)
    return short >= 0.95 * len(rows)
