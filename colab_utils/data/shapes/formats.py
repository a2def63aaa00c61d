"""Bring raw rows of any known shape into the schema."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from colab_utils.data.files import cells
from colab_utils.data.schema import (
    COMPLETION,
    INSTRUCTION,
    PREFERENCE,
    BadRow,
    Message,
    Row,
    kind_of,
)
from colab_utils.data.shapes import (
    columns,
    converting,
    kind_readers,
    kinds,
    ready_prompts,
    turns,
    values,
)
from colab_utils.data.shapes.columns import Plan

# Starts of reasons for which `load` gives specific advice.
ONE_MESSAGE = "one message of a conversation (its column role)"
UNKNOWN_FORMAT = "its columns match no known format"
NOT_AN_OBJECT = "not an object with columns"
MEDIA = "images and sound are not supported"
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
    return row if kind == "auto" else converting.convert(row, kind)


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
    plans: dict[columns.Key, Plan] = field(default_factory=dict)
    counts: Tally = field(default_factory=Tally)

    def read(self, raw: object, line: int) -> tuple[Row, str]:
        """Return a row in the schema and what was found; raises BadRow.

        What was found is the row's kind, or, for an answer with a label, one of
        `kinds.VERDICTS`.
        """
        if cells.is_conversation(raw):
            raw = {"messages": raw}
        if not isinstance(raw, dict):
            raise BadRow(f"{NOT_AN_OBJECT}, but {type(raw).__name__}")
        raw = cells.decode(raw)
        plan = self._plan(raw)
        notes: list[str] = []
        row = kind_readers.READERS[plan.kind](raw, plan, notes)
        row["line"] = line
        for name in plan.meta:
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
        if notes:
            self._count(notes)
        return row, found

    def _count(self, notes: list[str]) -> None:
        for note in set(notes):
            if note.startswith(turns.KEY):
                self.counts.keys[note.removeprefix(turns.KEY)] += 1
            else:
                self.counts.repairs[note] += 1

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

    def _plan(self, raw: dict[Any, Any]) -> Plan:
        key = tuple([(name, columns.type_of(value)) for name, value in raw.items()])
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= MANY_PLANS:
                self.tally()
            plan = self.plans[key] = self._recognize(key)
        plan.seen += 1
        if plan.why:
            raise BadRow(plan.why)
        return plan

    def _recognize(self, key: columns.Key) -> Plan:
        if name := columns.media(key):
            return Plan("", {}, "", [], f"{MEDIA} (its column {name})")
        ways = list(columns.plans(key))
        own = [way for way in ways if way.kind == self.kind]
        if self.kind == "auto" and ways[:1] and columns.is_one_message(key, ways[0]):
            return Plan("", {}, "", [], ONE_MESSAGE)
        unknown = UNKNOWN_FORMAT + columns.why_none(key)
        return next(iter(own or ways), Plan("", {}, "", [], unknown))


def _ready(row: Row, by: str, notes: list[str]) -> tuple[Row, str, str]:
    """Return a text with the marks of a chat template as an instruction row."""
    dialogue = ready_prompts.cut(row["text"], notes)
    if not dialogue:
        return row, COMPLETION, by
    name, messages = dialogue
    made: Row = {**row, "messages": turns.repaired(messages, notes)}
    del made["text"]
    return made, INSTRUCTION, f"{by}, cut at the marks {name}"
