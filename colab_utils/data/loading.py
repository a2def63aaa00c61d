"""Load a dataset from any source into the schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from colab_utils import demo, parameters, runtime
from colab_utils.data import formats, kinds, readers, schema
from colab_utils.data.schema import BadRow, Rejected, Row, escape, reject

DOLLY = "databricks/databricks-dolly-15k"
# Advice for a dataset without usable rows, by the start of the most frequent reason.
ADVICE = {
    formats.UNKNOWN_FORMAT: "Rename your columns to one of them",
    formats.NOT_AN_OBJECT: "Give every row columns; a list of rows needs a .json file",
    **kinds.ADVICE,
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


def load(source: str) -> tuple[list[Row], list[Rejected]]:
    """Return the rows of a dataset in the schema, and the rejected rows.

    `source` is "demo", a path (JSONL, JSON, CSV, TSV, Parquet) or a Hub id. Prints the
    columns that are not used. Raises FileNotFoundError, or ValueError when no row can
    be used.
    """
    rows: list[Row] = []
    rejected: list[Rejected] = []
    columns: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    labels: list[object] = []
    for item in runtime.progress(_raw_rows(source), "reading"):
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        line, raw = item
        if isinstance(raw, dict):
            columns.update(map(str, raw))
            unused.update(formats.unused_columns(raw))
        try:
            rows.append(formats.to_row(raw, line))
            labels += [raw["label"]] if isinstance(raw, dict) and "label" in raw else []
        except BadRow as error:
            rejected.append(reject(line, str(error), raw))
    if kind := kinds.by_labels(labels):
        rejected += [schema.reject_row(row, kind) for row in rows]
        rows = []
    if not rows:
        raise ValueError(_why_no_rows(source, columns, rejected))
    if unused:
        names = [f"{escape(name)[:40]} ({_rows(n)})" for name, n in unused.items()]
        print(f"columns not used: {', '.join(names[:12])}")
    _fill_labels(rows)
    return rows, rejected


def _raw_rows(source: str) -> Iterable[readers.Numbered | Rejected]:
    if source == "demo":
        return enumerate(demo.flawed(demo.questions()), start=1)
    return readers.read(source)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _fill_labels(rows: list[Row]) -> None:
    """Give all rows the same columns: a label of any row is "" in rows without it."""
    if any("group" in row for row in rows):
        for row in rows:
            row.setdefault("group", "")
    if any("category" in row for row in rows):
        for row in rows:
            row.setdefault("category", "")


def _why_no_rows(source: str, columns: Counter[str], rejected: list[Rejected]) -> str:
    if not columns and not rejected:
        return f"{source} has no rows."
    found = ", ".join(escape(name)[:40] for name, _ in columns.most_common(12))
    reasons = Counter(r.reason for r in rejected).most_common(3)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    advice = "Correct these rows in the file"
    for start, other in ADVICE.items():
        if reasons and reasons[0][0].startswith(start):
            advice = other
    return (
        f"No row of {source} can be used ({why}). Columns found: {found or 'none'}. "
        f"Known formats: {', '.join(formats.FORMATS)}, each with an optional context. "
        f"{advice}."
    )
