"""Recognize what a row is by the names of its columns, listed in `column_names`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
)
from colab_utils.data.shapes import values
from colab_utils.data.shapes.column_names import (
    ANSWERS,
    BETTER,
    CHOSEN,
    CLASSES,
    CONTEXTS,
    CONVERSATIONS,
    ENDS,
    HISTORIES,
    INPUTS,
    LABELED,
    LIST_SCORES,
    MEDIA,
    META,
    MIDDLES,
    PAIRS,
    PREFIXES,
    PROMPTS,
    RANKS,
    REJECTED,
    SCORES,
    SECOND,
    SEVERAL,
    STEMS,
    SUFFIXES,
    SYSTEMS,
    TEXTS,
    TOOLS,
    VERDICTS,
)

Key = tuple[tuple[Any, type | None], ...]  # names and types of the cells; blank: None


@dataclass
class Plan:
    """How to read the rows of one set of columns: their kind, and what holds what."""

    kind: str
    columns: dict[str, Any]  # "prompt" -> the column's name in the row
    by: str  # the columns by which the kind was recognized
    unused: list[str]
    why: str = ""  # the reason if rows of these columns can't be read
    seen: int = 0
    ways: dict[tuple[str, str], int] = field(default_factory=dict)  # counted by read
    contexts: list[Any] = field(init=False)  # columns appended to the first prompt
    meta: list[str] = field(init=False)
    more: bool = field(init=False)  # whether the messages are not all in two columns

    def __post_init__(self) -> None:
        parts = self.columns
        self.contexts = [parts[p] for p in parts if p.startswith("context ")]
        self.meta = [name for name in META if name in parts]
        self.more = bool(self.contexts) or "history" in parts or "system" in parts


class Objects:
    """Stands for the type of a cell that is a list of objects."""


def type_of(value: object) -> type | None:
    """Return the type of a cell, `Objects`, or None for a blank cell."""
    kind = value.__class__
    if kind is str:
        return None if not value or value.isspace() else kind  # type: ignore[attr-defined]
    if values.is_blank(value):
        return None
    return Objects if kind is list and isinstance(value[0], dict) else kind  # type: ignore[index]


def compact(name: object) -> str:
    """Return a column's name as it is compared: `System Prompt` is `systemprompt`."""
    return "".join(sign for sign in str(name).lower() if sign.isalnum())


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
    filled = list(_ways(_Names([name for name in every if types[name]], types)))
    broken = list(_ways(_Names(list(every), types)))
    if filled:
        first = [way for way in broken if _is_broken(*way, types, filled[0][0])]
        filled = first + filled
    for kind, found in filled + broken:
        yield _plan(kind, found, every, types, key)


def _is_broken(
    kind: str, found: Found, types: Mapping[str, type | None], other: str
) -> bool:
    """Return whether a row lacks a part of what it is, so that it looks like `other`.

    {"question": "Who?", "answer": "", "category": "x"} is no row to classify.
    """
    if kind == INSTRUCTION and other in (CLASSIFICATION, COMPLETION):
        parts = [found.get("prompt", ""), found.get("answer", "")]
        return parts[0] in PROMPTS and any(map(types.get, parts))
    if kind == PREFERENCE and other not in (PREFERENCE, MIDDLE):
        return any(types.get(found.get(part, "")) for part in ("chosen", "rejected"))
    return False


@dataclass(frozen=True)
class _Names:
    """The compact names of the columns that are looked at, and all types of cells."""

    names: Sequence[str]
    types: Mapping[str, type | None]

    def first(self, options: Sequence[str]) -> str:
        return next((name for name in options if name in self.names), "")

    def first_list(self, options: Sequence[str]) -> str:
        """Return the first name of a list; an empty cell may be a list too."""
        kinds = (list, dict, Objects, None)
        return self.first([name for name in options if self.types.get(name) in kinds])

    def prompt(self) -> str:
        history = "history" if self.types.get("history") is str else ""
        return self.first(PROMPTS) or history or self.first(INPUTS)


def why_none(key: Key) -> str:
    """Return why no kind is recognized: what a prompt or an answer lacks, or ""."""
    types = {compact(name): cell for name, cell in key}
    has = _Names([compact(name) for name, _ in key], types)
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


Found = dict[str, str]  # what a column holds -> its compact name


def _ways(has: _Names) -> Iterator[tuple[str, Found]]:
    """Yield (kind, what its columns hold) for each way to read the columns."""
    yield from ((PREFERENCE, found) for found in _two_answers(has))
    middle, before, after = has.first(MIDDLES), _any(PREFIXES, has), _any(SUFFIXES, has)
    if middle == "canonicalsolution":
        before = before or has.first(("prompt",))
    if before and middle and after:
        yield MIDDLE, {"prefix": before, "middle": middle, "suffix": after}
    if turns := has.first_list(CONVERSATIONS) or has.first(CONVERSATIONS[:2]):
        yield INSTRUCTION, {"messages": turns}
    text, label = has.first(LABELED), has.first(CLASSES)
    if label in META and any(name in ANSWERS for name in has.types):
        label = ""
    target = has.first(("target",))
    if text and has.types.get(target) in (int, bool):
        yield CLASSIFICATION, {"text": text, "label": target}
    for asked, answers in PAIRS:
        if asked in has.names and (answer := has.first(answers)):
            yield INSTRUCTION, {"prompt": asked, "answer": answer}
    if (asked := has.prompt()) and (answer := has.first(ANSWERS)):
        yield INSTRUCTION, {"prompt": asked, "answer": answer}
    if text and label:
        yield CLASSIFICATION, {"text": text, "label": label}
    if text := has.first(TEXTS):
        yield COMPLETION, {"text": text}


def _any(options: Sequence[str], has: _Names) -> str:
    """Return the first name of a column that may be empty, as a prefix may be."""
    return next((name for name in options if name in has.types), "")


def _two_answers(has: _Names) -> Iterator[Found]:
    """Yield what columns with a better and a worse answer hold."""
    asked = has.prompt() or has.first_list(CONVERSATIONS)
    prompt = {"prompt": asked} if asked else {}
    if (good := has.first(CHOSEN)) and (bad := has.first(REJECTED)):
        yield {**prompt, "chosen": good, "rejected": bad, **_scores(has, good, bad)}
    for stem, (a, b) in itertools.product(STEMS, ENDS):
        first, second = stem + a, stem + b
        if first in has.names and second in has.names:
            pair = {**prompt, "first": first, "second": second}
            if better := has.first(BETTER):
                yield {**pair, "better": better}
            if scores := _scores(has, a, b, ("first", "second")):
                yield {**pair, **scores}
    if prompt and (several := has.first_list(SEVERAL)):
        if scored := has.first_list(LIST_SCORES):
            yield {**prompt, "answers": several, "scores": scored}
        elif ranked := has.first_list(RANKS):
            yield {**prompt, "answers": several, "ranks": ranked}
        elif has.types[several] is Objects or several == "completions":
            yield {**prompt, "answers": several}


def _scores(
    has: _Names, good: str, bad: str, parts: Sequence[str] = ("chosen", "rejected")
) -> Found:
    """Return the columns of the scores of two answers: score_chosen, chosen_score."""
    for name in SCORES:
        for pair in ((name + good, name + bad), (good + name, bad + name)):
            if all(one in has.names for one in pair):
                return {
                    f"{part} score": one for part, one in zip(parts, pair, strict=True)
                }
    return {}


def _plan(
    kind: str,
    found: Found,
    every: Mapping[str, Any],
    types: Mapping[str, type | None],
    key: Key,
) -> Plan:
    """Add the columns that go with any row of the kind: context, system, labels."""
    used = dict(found)

    def add(part: str, options: Sequence[str]) -> None:
        taken = used.values()
        name = next((n for n in options if types.get(n) and n not in taken), "")
        if name:
            used[part] = name

    if kind in (INSTRUCTION, PREFERENCE):
        for name in CONTEXTS if "messages" not in found else CONTEXTS[2:]:
            add(f"context {name}", (name,))
        add("system", SYSTEMS)
        add("history", HISTORIES)
    if kind == INSTRUCTION:
        add("tools", TOOLS)
        add("verdict", VERDICTS)
    if found.get("text") in SECOND:
        add("second", (SECOND[found["text"]],))
    for name in META:
        if types.get(name) in (str, int, float, bool):
            add(name, (name,))
    columns = {part: every[name] for part, name in used.items()}
    taken = list(columns.values())
    unused = [str(name) for name, cell in key if cell and name not in taken]
    names = [values.name(columns[p]) for p in found if not p.endswith(" score")]
    if kind == PREFERENCE:
        names = names[1:] if "prompt" in found else names
    by = "by its column " if len(names) == 1 else "by its columns "
    by += " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return Plan(kind, columns, by, unused)
