"""Load a dataset from any source into the schema."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from colab_utils import demo, parameters, runtime
from colab_utils.data import schema
from colab_utils.data.files import readers
from colab_utils.data.schema import PREFERENCE, BadRow, Rejected, Row, escape, reject
from colab_utils.data.shapes import converting, formats, kinds, values
from colab_utils.data.shapes.column_names import OPTIONS, compact
from colab_utils.data.shapes.formats import Tally

Item = readers.Numbered | Rejected
MANY_MARKS = 0.01  # the share of rows with a special token from which it is printed
DISTINCT = 0.5  # the share of different labels from which they are hardly classes
TARGET = "target"
FIRST, CLASSES = 1000, 20  # rows that are looked at for classes; classes at most
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
DOLLY = "databricks/databricks-dolly-15k"
TABLE = re.compile(r"\.[ct]sv\b", re.IGNORECASE)
NO_HEADER = (
    ". The first line of a table must have the names: if it is a row, write a line "
    "such as question,answer above it"
)
# Advice for a dataset without usable rows, by the start of the most frequent reason.
ADVICE = {
    formats.UNKNOWN_FORMAT: "Rename your columns to one of them",
    formats.MEDIA: "Remove the column to train on the texts alone",
    formats.ONE_MESSAGE: "Put all messages of a conversation into one row, as a list "
    'in a column messages. KIND = "completion" trains on each message as raw text',
    formats.NOT_AN_OBJECT: 'Give every row columns: {"question": ..., "answer": ...}',
    kinds.UNPAIRED: "No prompt has a good and a bad answer, which would make a "
    'preference. KIND = "instruction" trains on the good answers only',
}


def resolve_dataset(source: str | None, model: str) -> str:
    """Return the dataset that "auto" stands for: "demo" for the demo model, else Dolly.

    The choice is printed. Any other source is returned without spaces or quotes around.
    """
    if not parameters.is_auto(source):
        return parameters.clean(source)
    if model == "demo":
        print("dataset: questions about the demo world, because the model is the demo")
        return "demo"
    print(f"dataset: {DOLLY}, 15,000 answers written by people (CC BY-SA 3.0)")
    return DOLLY


def load(source: str, kind: str = "auto") -> tuple[list[Row], list[Rejected]]:
    """Return the rows of a dataset in the schema, and the rejected rows.

    `source` is "demo", a path (JSONL, JSON, CSV, TSV, Parquet) or a Hub id. `kind` is
    "auto" or the kind of row to make. All rows are of one kind; it is printed, and so
    are repairs and columns that are not used. Raises FileNotFoundError, or ValueError
    when no row can be used.
    """
    kind = kinds.choose(kind)
    found = convert(runtime.progress(raw_rows(source), "reading"), kind)
    decision = kinds.decide(found.tally.found, kind)
    rows, rejected = settle(found, decision)
    if not rows:
        raise ValueError(why_no_rows(source, found.tally, rejected))
    report(found.tally, decision)
    _warn_of_labels(rows)
    _fill_labels(rows)
    return rows, rejected


def raw_rows(source: str) -> Iterable[Item]:
    """Yield the raw rows of a source, each with its line."""
    if source == "demo":
        return enumerate(demo.flawed(demo.questions()), start=1)
    return _with_classes(iter(readers.read(source)))


def _with_classes(items: Iterator[Item]) -> Iterator[Item]:
    """Yield raw rows in which the classes of a column `target` are numbers.

    A table has texts only, and other files may quote numbers. A text in `target` is an
    answer, a number is a class. The first rows decide: their targets are few, and all
    of them are whole numbers.
    """
    head = [*itertools.islice(items, FIRST)]
    rows = [raw for raw in map(_raw, head) if isinstance(raw, dict)]
    column = next((name for row in rows for name in row if compact(name) == TARGET), "")
    cells = [row.get(column) for row in rows]
    texts = [cell for cell in cells if not values.is_blank(cell)]
    few = min(CLASSES, max(2, len(texts) // 2))
    options = any(compact(name) in OPTIONS for row in rows[:1] for name in row)
    items = itertools.chain(head, items)
    if options or not (all(map(_is_number, texts)) and 0 < len(set(texts)) <= few):
        yield from items
        return
    for item in items:
        if isinstance(raw := _raw(item), dict) and _is_number(cell := raw.get(column)):
            raw[column] = int(cell)
        yield item


def _raw(item: Item) -> object:
    return None if isinstance(item, Rejected) else item[1]


def _is_number(cell: object) -> TypeGuard[str]:
    """Return whether a cell is the text of a whole number, as Python writes it."""
    return isinstance(cell, str) and NUMBER.fullmatch(cell) is not None


@dataclass
class Converted:
    """Rows that were read, what each was found to be, rejected rows, and counts."""

    rows: list[Row] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def convert(items: Iterable[Item], kind: str) -> Converted:
    """Bring raw rows into the schema; nothing is printed.

    The kind of the dataset is decided when the counts of all parts are added up:
    `kinds.decide(tally.found, kind)`. Then `Decision.reason` says for each row's
    `found` why it is rejected.
    """
    reader = formats.RowReader(kind)
    made = Converted()
    for item in items:
        if isinstance(item, Rejected):
            made.rejected.append(item)
            continue
        line, raw = item
        try:
            rows, found = reader.read_all(raw, line)
        except BadRow as error:
            made.rejected.append(reject(line, str(error), raw))
            continue
        made.rows += rows
        made.found += [found] * len(rows)
    made.tally = reader.tally()
    return made


def settle(
    made: Converted, decision: kinds.Decision
) -> tuple[list[Row], list[Rejected]]:
    """Return the rows of the dataset's kind, and all rejected rows.

    Good and bad answers to one prompt become preference rows.
    """
    rows: list[Row] = []
    good: list[Row] = []
    bad: list[Row] = []
    rejected = list(made.rejected)
    pairs = decision.kind in (kinds.UNPAIRED, PREFERENCE)
    for row, found in zip(made.rows, made.found, strict=True):
        meaning = decision.meaning(found)
        if pairs and meaning in (kinds.GOOD, kinds.BAD):
            (good if meaning == kinds.GOOD else bad).append(row)
        elif reason := decision.reason(found):
            rejected.append(schema.reject_row(row, reason))
        else:
            rows.append(row)
    if good or bad:
        paired, alone = converting.pair(good, bad)
        rows += paired
        rejected += [schema.reject_row(row, kinds.UNPAIRED_ROW) for row in alone]
    return rows, sorted(rejected, key=lambda one: one.line)


def report(tally: Tally, decision: kinds.Decision) -> None:
    """Print the kind, by what it was recognized, the repairs, and what is not used."""
    kind = PREFERENCE if decision.kind == kinds.UNPAIRED else decision.kind
    ways = Counter(
        {
            by: count
            for (found, by), count in tally.by.items()
            if decision.meaning(found) == decision.kind
            or decision.meaning(found) in (kinds.GOOD, kinds.BAD)
        }
    ).most_common(3)
    counted = len(ways) > 1
    said = [by + (f" ({_rows(count)})" if counted else "") for by, count in ways]
    paired = ", good and bad answers paired" if decision.kind == kinds.UNPAIRED else ""
    print(f"kind: {kind}, {'; '.join(said)}{paired}")
    total = tally.found.total()
    marks = Counter({m: n for m, n in tally.marks.items() if n >= MANY_MARKS * total})
    judged = decision.zero_is_bad or tally.found[kinds.GOOD] or tally.found[kinds.BAD]
    for name, counts in (
        ("repaired", tally.repairs),
        ("not used in messages", tally.keys),
        ("columns not used", tally.unused + (Counter() if judged else tally.verdicts)),
        ("special tokens of an unknown template, trained as text", marks),
    ):
        if counts:
            parts = [f"{escape(n)[:80]} ({_rows(c)})" for n, c in counts.most_common()]
            print(f"{name}: {', '.join(parts[:12])}")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _warn_of_labels(rows: list[Row]) -> None:
    """Print that nearly each row has its own label, which is no classification."""
    labels = {row["label"] for row in rows if "label" in row}
    if len(labels) > max(DISTINCT * len(rows), 10):
        print(
            f"labels: {len(labels):,} different ones in {_rows(len(rows))}, so they "
            'are hardly classes: KIND = "instruction" or "completion" reads the rows '
            "otherwise"
        )


def _fill_labels(rows: list[Row]) -> None:
    """Give all rows the same columns: a label of any row is "" in rows without it."""
    if any("group" in row for row in rows):
        for row in rows:
            row.setdefault("group", "")
    if any("category" in row for row in rows):
        for row in rows:
            row.setdefault("category", "")


def why_no_rows(source: str, tally: Tally, rejected: list[Rejected]) -> str:
    """Return why no row of a source can be used, and what to do."""
    if not rejected:
        return f"{source} has no rows."
    found = ", ".join(escape(n)[:40] for n, _ in tally.columns.most_common(12))
    reasons = Counter(r.reason for r in rejected).most_common(3)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    advice = "Correct these rows in the file"
    for start, other in ADVICE.items():
        if reasons and reasons[0][0].startswith(start):
            advice = other
    if advice == ADVICE[formats.UNKNOWN_FORMAT] and TABLE.search(source):
        advice += NO_HEADER
    return (
        f"No row of {source} can be used ({why}). Columns found: {found or 'none'}. "
        f"Known formats: {formats.KNOWN}. {advice}."
    )
