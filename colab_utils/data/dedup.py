"""Duplicates: rows with the same content, and rows that nearly repeat another."""

from __future__ import annotations

import json
from hashlib import blake2b

from colab_utils.data import schema
from colab_utils.data.repeats import SIMILAR, DisjointSets, Pair, Repeats
from colab_utils.data.schema import Message, Rejected, Row, reject_row


def exact_key(row: Row) -> bytes:
    """Return 16 bytes that are equal for rows with the same content.

    The line, the group and the category do not count.
    """
    columns = (*schema.COLUMNS[schema.kind_of(row)], "tools")
    content = json.dumps([row.get(name) for name in columns], sort_keys=True)
    return blake2b(content.encode(), digest_size=16).digest()


def drop_exact(rows: list[Row]) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those with new content and those that repeat an earlier row."""
    seen: dict[bytes, Row] = {}
    rejected = []
    for row in rows:
        first = seen.setdefault(exact_key(row), row)
        if first is not row:
            rejected.append(reject_row(row, f"repeats line {first['line']}"))
    return list(seen.values()), rejected


def texts_of(row: Row) -> tuple[str, str]:
    """Return the texts by which rows are compared: the prompt and the answer.

    The prompt has the system message and the tools. The answer has the tool calls, and
    the worse answer of a preference row.
    """
    kind = schema.kind_of(row)
    if kind not in (schema.INSTRUCTION, schema.PREFERENCE):
        return schema.prompt_of(row), schema.answer_of(row)
    if kind == schema.PREFERENCE:
        answers = [*row["chosen"], *row["rejected"]]
        return _text(row["prompt"]), _text(answers)
    tools = json.dumps(row["tools"]) if row.get("tools") else ""
    prompt = _text(row["messages"][:-1])
    return f"{prompt}\n{tools}" if tools else prompt, _text(row["messages"][-1:])


def _text(turns: list[Message]) -> str:
    parts = []
    for turn in turns:
        parts.append(turn["content"] or "")
        if turn.get("tool_calls"):
            parts.append(json.dumps(turn["tool_calls"], sort_keys=True))
    return "\n".join(parts)


def duplicate_pairs(rows: list[Row]) -> list[Pair]:
    """Return the pairs of rows that nearly repeat each other, with their similarity.

    The similarity is the share of words that need no edit to make the rows equal. Two
    rows with other numbers, names or words in the same sentence are not a pair.
    """
    return _pairs([texts_of(row) for row in rows])


def near_duplicates(rows: list[Row]) -> list[int]:
    """Return for each row the index of the first row that it repeats, or its own.

    Two rows are in one group if their similarity is `SIMILAR` or more, or if a third
    row links them. See `duplicate_pairs`.
    """
    sets = DisjointSets(len(rows))
    for pair in duplicate_pairs(rows):
        if pair.similarity >= SIMILAR:
            sets.join(pair.first, pair.second)
    return sets.all()


def _pairs(texts: list[tuple[str, str]]) -> list[Pair]:
    found = Repeats()
    found.add(texts)
    return sorted(found.pairs(lambda indices: [texts[i] for i in indices]))
