"""Bring raw rows of any known shape into the schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from colab_utils.data import (
    columns,
    converting,
    kinds,
    preferences,
    ready_prompts,
    tool_calls,
    turns,
    values,
)
from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    BadRow,
    Message,
    Row,
    kind_of,
)

# Starts of reasons for which `load` gives specific advice.
UNKNOWN_FORMAT = "its columns match no known format"
NOT_AN_OBJECT = "not an object with columns"
MANY_PLANS = 1000  # sets of columns that a reader remembers


KNOWN = (
    "a prompt and its answer, messages, chosen and rejected, text and label, prefix "
    "with middle and suffix, or text"
)


def to_row(raw: object, line: int, kind: str = "auto") -> Row:
    """Bring a raw row into the schema; raises BadRow with the reason.

    With another kind than "auto", a row of another kind is converted if that makes
    sense. To read many rows, keep one `RowReader`: it is faster.
    """
    row, found = RowReader(kind).read(raw, line)
    if found == kinds.BAD or (found == kinds.GOOD and kind != INSTRUCTION):
        raise BadRow(kinds.UNPAIRED_ROW)
    return row


def to_messages(raw: object) -> list[Message]:
    """Bring a row of any known shape into messages; raises BadRow with the reason.

    {"question": "2 + 2?", "answer": "4"} becomes
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}].
    """
    row = to_row(raw, 0)
    if "messages" not in row:
        raise BadRow(f"a row of the kind {kind_of(row)} has no messages")
    return row["messages"]


@dataclass
class Tally:
    """What was read: counts that can be added up over the parts of a dataset.

    `found` counts kinds and verdicts, `by` counts (kind, how it was recognized).
    """

    found: Counter[str] = field(default_factory=Counter)
    by: Counter[tuple[str, str]] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            *(
                getattr(self, part.name) + getattr(other, part.name)
                for part in fields(self)
            )
        )


@dataclass
class RowReader:
    """Reads raw rows, and remembers how each set of columns is read.

    `kind` is "auto" or the kind that rows are converted to.
    """

    kind: str = "auto"
    plans: dict[columns.Key, columns.Plan] = field(default_factory=dict)
    counts: Tally = field(default_factory=Tally)

    def read(self, raw: object, line: int) -> tuple[Row, str]:
        """Return a row in the schema and what was found; raises BadRow.

        What was found is the row's kind, or, for an answer with a label, one of
        `kinds.VERDICTS`.
        """
        if not isinstance(raw, dict):
            raise BadRow(f"{NOT_AN_OBJECT}, but {type(raw).__name__}")
        plan = self._plan(raw)
        notes: list[str] = []
        row = READERS[plan.kind](raw, plan.columns, notes)
        row["line"] = line
        for name in columns.META:
            if name in plan.columns:
                label = values.text(raw[plan.columns[name]], name)
                row[name] = label  # type: ignore[literal-required]
        found, by = plan.kind, plan.by
        if found == COMPLETION and self.kind in ("auto", INSTRUCTION):
            row, found, by = _ready(row, by, notes)
        elif "verdict" in plan.columns:
            found = kinds.verdict(raw[plan.columns["verdict"]])
        if self.kind not in ("auto", found) and not (
            found in kinds.VERDICTS and self.kind in (INSTRUCTION, PREFERENCE)
        ):
            row, found = converting.convert(row, self.kind), self.kind
            by = f"made from {plan.kind} ({by})"
        plan.ways[found, by] = plan.ways.get((found, by), 0) + 1
        for note in set(notes):
            kept = self.counts.repairs
            if note.startswith(turns.KEY):
                kept, note = self.counts.keys, note.removeprefix(turns.KEY)
            kept[note] += 1
        return row, found

    def tally(self) -> Tally:
        """Return the counts of all rows that were read."""
        for key, plan in self.plans.items():
            rows = sum(plan.ways.values())
            for (found, by), count in plan.ways.items():
                self.counts.found[found] += count
                self.counts.by[found, by] += count
            if rows:
                self.counts.unused.update(dict.fromkeys(plan.unused, rows))
            names = [str(name) for name, _ in key]
            self.counts.columns.update(dict.fromkeys(names, plan.seen))
        self.plans.clear()
        return self.counts

    def _plan(self, raw: dict[Any, Any]) -> columns.Plan:
        key = tuple(
            [
                (name, None if values.is_blank(value) else value.__class__)
                for name, value in raw.items()
            ]
        )
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= MANY_PLANS:
                self.tally()
            ways = list(columns.plans(key))
            own = [way for way in ways if way.kind == self.kind]
            plan = next(iter(own or ways), columns.Plan("", {}, "", []))
            self.plans[key] = plan
        plan.seen += 1
        if not plan.kind:
            raise BadRow(UNKNOWN_FORMAT)
        return plan


def _instruction(raw: dict[Any, Any], names: dict[str, Any], notes: list[str]) -> Row:
    if "messages" in names:
        found = turns.messages_of(raw[names["messages"]], names["messages"], notes)
    else:
        asked, answer = raw[names["prompt"]], raw[names["answer"]]
        found = preferences.as_messages(asked, turns.USER, names["prompt"], notes)
        found += preferences.as_messages(
            answer, turns.ASSISTANT, names["answer"], notes
        )
    found = _with_context(raw, names, found, notes)
    row: Row = {"messages": turns.repaired(found, notes)}
    if "tools" in names:
        schemas = tool_calls.tools_of(raw[names["tools"]], notes)
        if schemas:
            row["tools"] = schemas
    return row


def _with_context(
    raw: dict[Any, Any], names: dict[str, Any], found: list[Message], notes: list[str]
) -> list[Message]:
    """Add the columns of a context, a system message and earlier turns."""
    for part, name in names.items():
        if part.startswith("context "):
            first = next((t for t in found if t["role"] == turns.USER), None)
            if first:
                first["content"] += "\n\n" + values.text(raw[name], name)
    if "history" in names:
        found = _history(raw[names["history"]], names["history"], notes) + found
    if "system" in names:
        system = values.text(raw[names["system"]], names["system"])
        found = [{"role": turns.SYSTEM, "content": system}, *found]
    return found


def _history(value: object, column: object, notes: list[str]) -> list[Message]:
    value = values.decoded(value, column)
    if not isinstance(value, list):
        raise BadRow(f"{values.name(column)} is not a list of earlier turns")
    if any(isinstance(turn, dict) for turn in value):
        return turns.messages_of(value, column, notes)
    found: list[Message] = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(f"{values.name(column)} is not a list of pairs")
        for role, content in zip((turns.USER, turns.ASSISTANT), pair, strict=True):
            found.append({"role": role, "content": values.text(content, column)})
    return found


def _preference(raw: dict[Any, Any], names: dict[str, Any], notes: list[str]) -> Row:
    prompt = raw[names["prompt"]] if "prompt" in names else None
    prompt, good, bad = preferences.preference(
        prompt, raw[names["chosen"]], raw[names["rejected"]], notes
    )
    prompt = _with_context(raw, names, prompt, notes)
    return {"prompt": prompt, "chosen": good, "rejected": bad}


def _middle(raw: dict[Any, Any], names: dict[str, Any], notes: list[str]) -> Row:
    before, after = raw[names["prefix"]], raw[names["suffix"]]
    return {
        "prefix": "" if before is None else values.whole_text(before, names["prefix"]),
        "middle": values.whole_text(raw[names["middle"]], names["middle"]),
        "suffix": "" if after is None else values.whole_text(after, names["suffix"]),
    }


def _labeled(raw: dict[Any, Any], names: dict[str, Any], notes: list[str]) -> Row:
    text = values.text(raw[names["text"]], names["text"])
    if "second" in names:
        text += "\n" + values.text(raw[names["second"]], names["second"])
    return {"text": text, "label": values.label(raw[names["label"]], names["label"])}


def _raw_text(raw: dict[Any, Any], names: dict[str, Any], notes: list[str]) -> Row:
    return {"text": values.whole_text(raw[names["text"]], names["text"])}


def _ready(row: Row, by: str, notes: list[str]) -> tuple[Row, str, str]:
    """Return a text with the marks of a chat template as an instruction row."""
    dialogue = ready_prompts.cut(row["text"])
    if not dialogue:
        return row, COMPLETION, by
    name, messages = dialogue
    made: Row = {**row, "messages": turns.repaired(messages, notes)}
    del made["text"]
    return made, INSTRUCTION, f"cut at the marks {name}, {by}"


READERS: dict[str, Callable[[dict[Any, Any], dict[str, Any], list[str]], Row]] = {
    INSTRUCTION: _instruction,
    PREFERENCE: _preference,
    MIDDLE: _middle,
    CLASSIFICATION: _labeled,
    COMPLETION: _raw_text,
}
