"""Bring raw rows of any known shape into the schema."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from colab_utils.data.files import cells
from colab_utils.data.schema import (
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    BadRow,
    Message,
    Row,
    kind_of,
    texts_of,
)
from colab_utils.data.shapes import (
    columns,
    converting,
    kind_readers,
    kinds,
    middle_marks,
    ready_prompts,
    template_marks,
    turns,
    values,
    ways,
)
from colab_utils.data.shapes.columns import Plan

# Starts of reasons for which `load` gives specific advice.
ONE_MESSAGE = "one message of a conversation (its column role)"
UNKNOWN_FORMAT = "its columns match no known format"
NOT_AN_OBJECT = "not an object with columns"
SEVERAL = "it has several answers to its prompt, which are several rows"
MEDIA = "images and sound are not supported"
CUT_MIDDLE = "cut at its marks of fill-in-the-middle"
VERDICT, MARK = "verdict: ", "mark: "  # starts of notes
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

    `found` counts kinds and verdicts, `by` counts (kind, how it was recognized),
    `verdicts` columns that say whether an answer is good, and `marks` special tokens in
    texts.
    """

    found: Counter[str] = field(default_factory=Counter)
    by: Counter[tuple[str, str]] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)

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
        """Return the one row of a raw row and what was found, as `read_all` does.

        Raises BadRow, also if there are several.
        """
        made, found = self.read_all(raw, line)
        if len(made) > 1:
            raise BadRow(SEVERAL)
        return made[0], found

    def read_all(self, raw: object, line: int) -> tuple[list[Row], str]:
        """Return rows in the schema, one for each answer, and what was found.

        What was found is the rows' kind, or, for an answer with a label, one of
        `kinds.VERDICTS`. Raises BadRow.
        """
        if cells.is_conversation(raw):
            raw = {"messages": raw}
        if not isinstance(raw, dict):
            raise BadRow(f"{NOT_AN_OBJECT}, but {type(raw).__name__}")
        raw = cells.decode(raw)
        plan = self._plan(raw)
        if plan.inside:
            return self.read_all(raw[plan.inside], line)
        notes = [
            f"{kind_readers.UNUSED}{values.name(name)}"
            for name in plan.flags
            if not kinds.is_trained(raw[name], name)
        ]
        rows = kind_readers.READERS[plan.kind](raw, plan, notes)
        for row in rows:
            row["line"] = line
            for name in plan.meta:
                label = values.text(raw[plan.columns[name]], name)
                row[name] = label  # type: ignore[literal-required]
        found, by = plan.kind, plan.by
        if found == COMPLETION and self.kind in ("auto", INSTRUCTION, MIDDLE):
            rows[0], found, by = _ready(rows[0], by, notes, self.kind)
        elif "middle" in rows[0] and found != MIDDLE:
            found, by = MIDDLE, f"{by}, {CUT_MIDDLE}"
        elif plan.verdict:
            name = plan.columns[plan.verdict]
            found = kinds.verdict(raw[name], name, opposite="bad" in plan.verdict)
            notes.append(f"{VERDICT}{values.name(name)}")
        if self.kind not in ("auto", found) and not (
            found in kinds.VERDICTS and self.kind in (INSTRUCTION, PREFERENCE)
        ):
            rows = [converting.convert(row, self.kind) for row in rows]
            found, by = self.kind, f"made from {found} ({by})"
        plan.read += 1
        plan.ways[found, by] = plan.ways.get((found, by), 0) + len(rows)
        for text in texts_of(rows[0]):
            if mark := template_marks.unread(text):
                notes.append(f"{MARK}{mark}")
        if notes:
            self._count(notes)
        return rows, found

    def _count(self, notes: list[str]) -> None:
        counters = {
            turns.KEY: self.counts.keys,
            kind_readers.UNUSED: self.counts.unused,
            VERDICT: self.counts.verdicts,
            MARK: self.counts.marks,
        }
        for note in dict.fromkeys(notes):
            for start, counter in counters.items():
                if note.startswith(start):
                    counter[note.removeprefix(start)] += 1
                    break
            else:
                self.counts.repairs[note] += 1

    def tally(self) -> Tally:
        """Return the counts of all rows that were read."""
        for key, plan in self.plans.items():
            for (found, by), count in plan.ways.items():
                self.counts.found[found] += count
                self.counts.by[found, by] += count
            if plan.read:
                self.counts.unused.update(dict.fromkeys(plan.unused, plan.read))
            names = [str(name) for name, _ in key]
            self.counts.columns.update(dict.fromkeys(names, plan.seen))
        self.plans.clear()
        return self.counts

    def _plan(self, raw: dict[Any, Any]) -> Plan:
        key = tuple([(name, ways.type_of(value)) for name, value in raw.items()])
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
        plans = list(columns.plans(key))
        own = [plan for plan in plans if plan.kind == self.kind]
        if plans and {"answers", "best first"} & plans[0].columns.keys():
            own = plans[:1]  # not all of the answers are good
        if not plans and (inside := columns.nested(key)):
            return Plan("", {}, "", [], inside=inside)
        if self.kind == "auto" and plans[:1] and columns.is_one_message(key, plans[0]):
            return Plan("", {}, "", [], ONE_MESSAGE)
        unknown = UNKNOWN_FORMAT + columns.why_none(key)
        return next(iter(own or plans), Plan("", {}, "", [], unknown))


def _ready(row: Row, by: str, notes: list[str], kind: str) -> tuple[Row, str, str]:
    """Return a text that is a dialogue, or has marks of fill-in-the-middle, as such.

    A reader who asks for middles gets those of the text as it is.
    """
    text = row["text"]
    made: Row = {**row}
    del made["text"]
    if middle_marks.begins(text):
        made.update(kind_readers.middle_of(text))
        return made, MIDDLE, f"{by}, {CUT_MIDDLE}"
    if kind == MIDDLE:
        return row, COMPLETION, by
    if cells.is_conversation(listed := cells.value_of(text)):
        messages = turns.messages_of(listed, "text", notes)
    elif dialogue := ready_prompts.cut(text, notes):
        name, messages = dialogue
        by += f", cut at the marks {name}"
    else:
        return row, COMPLETION, by
    made["messages"] = turns.repaired(messages, notes)
    return made, INSTRUCTION, by
