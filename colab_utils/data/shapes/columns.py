"""Recognize what a row is by the names of its columns, listed in `column_names`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
)
from colab_utils.data.shapes import values, ways
from colab_utils.data.shapes.column_names import (
    ANSWERS,
    BAD_VERDICTS,
    CONTEXTS,
    HISTORIES,
    INPUTS,
    MASKS,
    MEDIA,
    META,
    PROMPTS,
    SYSTEMS,
    TEXT_CONTEXTS,
    TOOLS,
    VERDICTS,
    WEIGHTS,
    compact,
)
from colab_utils.data.shapes.ways import Flags, Found, Names, Several

Key = tuple[tuple[Any, type | None], ...]  # names and types of the cells; blank: None
PLAIN = (str, int, float, bool)
JUDGED = (
    "{} judges each of several answers, which is not supported: write a row for each"
)
PRODIGY = (
    "an export of Prodigy: keep the rows of answer accept, with their text and label"
)


@dataclass
class Plan:
    """How to read the rows of one set of columns: their kind, and what holds what."""

    kind: str
    columns: dict[str, Any]  # "prompt" -> the column's name in the row
    by: str  # the columns by which the kind was recognized
    unused: list[str]
    why: str = ""  # the reason if rows of these columns can't be read
    inside: str = ""  # the column that holds the row
    seen: int = 0  # raw rows
    read: int = 0  # those of them that became rows
    ways: dict[tuple[str, str], int] = field(default_factory=dict)  # counted by read
    verdict: str = field(init=False)  # the part that says whether the answer is good
    options: list[Any] = field(init=False)  # columns of the options of a question
    flags: list[Any] = field(init=False)  # columns that say whether the row is trained
    meta: list[str] = field(init=False)
    more: bool = field(init=False)  # whether the messages are not all in two columns

    def __post_init__(self) -> None:
        self.options, self.flags = (
            [name for part, name in self.columns.items() if part.startswith(start)]
            for start in ("option", "flag ")
        )
        self.verdict = next((part for part in self.columns if "verdict" in part), "")
        self.meta = [name for name in META if name in self.columns]
        parts = ("history", "system", "context", "option")
        self.more = any(part.startswith(parts) for part in self.columns)


def plans(key: Key) -> Iterator[Plan]:
    """Yield each way to read a row with these columns, the likeliest first.

    A table that was merged from several has empty columns, so filled columns are tried
    first.
    """
    every: dict[str, Any] = {}
    types: dict[str, type | None] = {}
    # Of `Answer` and `answer`, the one that is filled is used, then the lower-case one.
    for name, cell in sorted(key, key=lambda c: (bool(c[1]), compact(c[0]) == c[0])):
        every[compact(name)], types[compact(name)] = name, cell
    filled = list(ways.ways(Names([name for name in every if types[name]], types)))
    broken = list(ways.ways(Names(list(every), types)))
    if filled:
        first = [way for way in broken if _is_broken(*way, types, *filled[0])]
        filled = first + filled
    for kind, found in filled + broken:
        yield _plan(kind, found, every, types, key)


def _is_broken(
    kind: str, found: Found, types: Mapping[str, type | None], other: str, read: Found
) -> bool:
    """Return whether a row lacks a part of what it is, so that it looks like `other`.

    {"question": "Who?", "answer": "", "category": "x"} is no row to classify. In
    {"question": "", "answer": "Me.", "text": "x"}, the text is not the question.
    """
    if kind == INSTRUCTION and found.get("prompt", "") in PROMPTS:
        parts = [found["prompt"], found["answer"]]
        if other == INSTRUCTION:
            asked = read.get("prompt", "")
            return not types.get(parts[0]) and asked in INPUTS[2:]
        return other in (CLASSIFICATION, COMPLETION) and any(map(types.get, parts))
    if kind == PREFERENCE and other not in (PREFERENCE, MIDDLE):
        parts = [found.get(part, "") for part in ("chosen", "rejected")]
        return any(types.get(part) for part in parts)
    return False


def why_none(key: Key) -> str:
    """Return why no kind is recognized: what a prompt or an answer lacks, or ""."""
    types = {compact(name): cell for name, cell in key}
    has = Names([compact(name) for name, _ in key], types)
    names = {compact(name): values.name(name) for name, _ in key}
    if prompt := has.prompt():
        return f" ({names[prompt]} may be the prompt, but no column is its answer)"
    if answer := has.first(ANSWERS):
        return f" ({names[answer]} may be the answer, but no column is its prompt)"
    return ""


def media(key: Key) -> str:
    """Return the name of a filled column with images or sound, or ""."""
    return next((values.name(n) for n, cell in key if cell and compact(n) in MEDIA), "")


def is_one_message(key: Key, plan: Plan) -> bool:
    """Return whether a row is read as raw text, but has the role of a speaker."""
    return plan.kind == COMPLETION and any(
        cell and name == "role" for name, cell in key
    )


def nested(key: Key) -> str:
    """Return the one column that holds an object, next to plain cells, or "".

    The viewer of the Hub writes {"row_idx": 0, "row": {...}}, OpenAI's batch API
    {"custom_id": "a", "body": {...}}.
    """
    objects = [name for name, cell in key if cell is dict]
    plain = all(cell in (*PLAIN, dict, None) for _, cell in key)
    return objects[0] if plain and len(objects) == 1 else ""


def _plan(
    kind: str,
    found: Found,
    every: Mapping[str, Any],
    types: Mapping[str, type | None],
    key: Key,
) -> Plan:
    """Add the columns that go with any row of the kind: context, system, labels."""
    used = dict(found)

    def add(part: str, *options: str, types_of: tuple[type, ...] = ()) -> None:
        for name in options:
            cell = types.get(name)
            if cell and name not in used.values() and cell in (types_of or (cell,)):
                used.setdefault(part, name)

    if kind in (INSTRUCTION, PREFERENCE):
        talk = "messages" in found or found.get("chosen") == "messages"
        for name in CONTEXTS[2:] if talk else CONTEXTS:
            add(f"context {name}", name)
        for name in () if talk else TEXT_CONTEXTS:
            add(f"context {name}", name, types_of=(str, list, Several))
        add("system", *SYSTEMS)
        add("history", *HISTORIES)
    if kind == INSTRUCTION:
        add("tools", *TOOLS)
        add("verdict", *VERDICTS, types_of=PLAIN)
        add("bad verdict", *BAD_VERDICTS, types_of=(bool,))
    for name in WEIGHTS + MASKS:
        add(f"flag {name}", name, types_of=(bool,) if name == "loss" else PLAIN)
    for name in META:
        add(name, name, types_of=PLAIN)
    columns = {part: every[name] for part, name in used.items()}
    taken = list(columns.values())
    unused = [str(name) for name, cell in key if cell and name not in taken]
    parts = [p for p in found if not p.endswith(" score") and "option " not in p]
    names = [values.name(columns[part]) for part in parts]
    if kind == PREFERENCE:
        names = names[1:] if "prompt" in found else names
    by = "by its column " if len(names) == 1 else "by its columns "
    by += " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    if "best first" in found:
        by += " of two answers or more, of which the first is the best (LLaMA-Factory)"
    judge = next((name for name, cell in key if cell is Flags), None)
    several = types.get(found.get("answer", "")) is Several
    why = JUDGED.format(values.name(judge)) if judge and several else ""
    return Plan(kind, columns, by, unused, PRODIGY if "inputhash" in every else why)
