"""Convert rows of one kind into rows of another where that makes sense."""

from __future__ import annotations

import json
from collections.abc import Sequence

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    BadRow,
    Row,
    kind_of,
)


def convert(row: Row, kind: str) -> Row:
    """Return a row as one of another kind; raises BadRow if it can't be one."""
    found = kind_of(row)
    make = CONVERTERS.get((found, kind))
    if found == kind:
        return row
    if make is None:
        raise BadRow(f"a row of the kind {found} can't become one of the kind {kind}")
    made = make(row)
    for name in ("line", "group", "category"):
        if name in row:
            made[name] = row[name]
    return made


def better_answer(row: Row) -> Row:
    """Return a preference row as an instruction row with the chosen answer."""
    return {"messages": [*row["prompt"], *row["chosen"]]}


def ask_for_label(row: Row) -> Row:
    """Return a labeled row as an instruction row: the text asks, the label answers."""
    turns = (("user", row["text"]), ("assistant", row["label"]))
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def answer_as_label(row: Row) -> Row:
    """Return an instruction row of one question as a labeled row.

    Raises BadRow for a conversation.
    """
    turns = [turn for turn in row["messages"] if turn["role"] != "system"]
    if len(turns) != 2 or not turns[1]["content"]:
        raise BadRow("only one question with one answer can become a labeled row")
    return {"text": turns[0]["content"], "label": turns[1]["content"]}


def whole_text(row: Row) -> Row:
    """Return a row with a middle as raw text."""
    return {"text": row["prefix"] + row["middle"] + row["suffix"]}


def without_label(row: Row) -> Row:
    """Return the text of a labeled row as raw text."""
    return {"text": row["text"]}


CONVERTERS = {
    (PREFERENCE, INSTRUCTION): better_answer,
    (CLASSIFICATION, INSTRUCTION): ask_for_label,
    (INSTRUCTION, CLASSIFICATION): answer_as_label,
    (MIDDLE, COMPLETION): whole_text,
    (CLASSIFICATION, COMPLETION): without_label,
}


def pair(good: Sequence[Row], bad: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return preference rows of good and bad answers to one prompt, and the others.

    The first good answer to a prompt is compared with its first bad one, and so on.
    """
    answers: dict[str, list[Row]] = {}
    for row in bad:
        answers.setdefault(_asked(row), []).append(row)
    paired, alone = [], []
    for row in good:
        against = answers.get(_asked(row))
        if not against:
            alone.append(row)
            continue
        worse = against.pop(0)
        made: Row = {
            "prompt": row["messages"][:-1],
            "chosen": row["messages"][-1:],
            "rejected": worse["messages"][-1:],
        }
        for name in ("line", "group", "category"):
            if name in row:
                made[name] = row[name]
        paired.append(made)
    return paired, alone + [row for rows in answers.values() for row in rows]


def _asked(row: Row) -> str:
    return json.dumps(row["messages"][:-1])
