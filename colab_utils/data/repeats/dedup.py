"""Duplicates: rows with the same content, and rows that nearly repeat another."""

from __future__ import annotations

import json
import marshal

import xxhash

from colab_utils.data import schema
from colab_utils.data.repeats.groups import Pair
from colab_utils.data.repeats.sharing import shared
from colab_utils.data.schema import Rejected, Row, reject_row


def exact_key(row: Row) -> bytes:
    """Return 16 bytes that are equal for rows with the same content.

    The line, the group and the category do not count.
    """
    content = [row.get(name) for name in schema.COLUMNS[schema.kind_of(row)]]
    flat = [
        [(turn["role"], turn["content"], _more(turn)) for turn in value]
        if value.__class__ is list
        else value
        for value in content
    ]
    tools = json.dumps(row["tools"], sort_keys=True) if "tools" in row else None
    # Several times as fast as JSON. Version 2 writes equal values as equal bytes.
    return xxhash.xxh3_128_digest(marshal.dumps([flat, tools], 2))


def _more(turn: schema.Message) -> str | None:
    """Return the keys of a message apart from its role and content, as JSON."""
    return json.dumps(turn, sort_keys=True) if len(turn) > 2 else None


def drop_exact(rows: list[Row]) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those with new content and those that repeat an earlier row."""
    seen: dict[bytes, Row] = {}
    rejected = []
    for row in rows:
        first = seen.setdefault(exact_key(row), row)
        if first is not row:
            rejected.append(reject_row(row, f"repeats line {first['line']}"))
    return list(seen.values()), rejected


def question_of(row: Row) -> str:
    """Return what a row asks: its prompt, and the tools that may be called."""
    prompt = schema.prompt_of(row)
    tools = row.get("tools")
    return f"{prompt}\n{json.dumps(tools, sort_keys=True)}" if tools else prompt


def texts_of(row: Row) -> tuple[str, str]:
    """Return the texts by which rows are compared: the question and the answer.

    With the question are the worse answer of a preference row, and which turns are not
    trained.
    """
    asked = [question_of(row)]
    if schema.kind_of(row) == schema.PREFERENCE:
        # Not with the answer: a row with both answers exchanged is another row.
        asked += map(schema.said, row["rejected"])
    turns = enumerate(row.get("messages", ()))
    asked += [f"untrained {i}" for i, turn in turns if "weight" in turn]
    return "\n".join(asked), schema.answer_of(row)


def duplicate_pairs(rows: list[Row]) -> list[Pair]:
    """Return the pairs of rows that nearly repeat each other, with their similarity.

    The similarity is the share of words that need no edit to make the rows equal. Two
    rows with other numbers, names or words in the same sentence are not a pair.
    """
    from colab_utils.data.repeats.engine import Repeats

    texts = [texts_of(row) for row in rows]
    found = Repeats()
    found.add(texts)
    return sorted(found.pairs(lambda indices: [texts[i] for i in indices]))


def near_duplicates(rows: list[Row]) -> list[int]:
    """Return for each row the index of the first row that it repeats, or its own.

    Two rows are in one group if their similarity is `SIMILAR` or more, or if a third
    row links them. See `duplicate_pairs`. Prints what many rows share.
    """
    texts = [texts_of(row) for row in rows]
    if line := shared(texts):
        print(f"near duplicates: {line}")
    return first_repeats(texts)


def first_repeats(texts: list[tuple[str, str]]) -> list[int]:
    """Return for each pair of texts the index of the first pair that it repeats."""
    from colab_utils.data.repeats.engine import Repeats

    found = Repeats()
    found.add(texts)
    first: list[int] = found.first(lambda some: [texts[i] for i in some]).tolist()
    return first
