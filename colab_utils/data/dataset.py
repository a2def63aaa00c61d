"""Load a dataset from any source into the schema; save and read datasets."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from colab_utils import demo, hub, parameters, recipe, runtime, workspace
from colab_utils.data import kinds, readers, schema
from colab_utils.data.schema import BadRow, Rejected, Row, escape, reject

DOLLY = "databricks/databricks-dolly-15k"
# Advice for a dataset without usable rows, by the start of the most frequent reason.
ADVICE = {
    schema.UNKNOWN_FORMAT: "Rename your columns to one of them",
    schema.NOT_AN_OBJECT: "Give every row columns; a list of rows needs a .json file",
    schema.NOT_JSON: "If the file is one JSON list, name it .json",
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
            unused.update(schema.unused_columns(raw))
        try:
            rows.append(schema.to_row(raw, line))
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
    path = readers.local_file(source)
    return readers.read_file(path) if path else readers.read_hub(source)


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
        f"Known formats: {', '.join(schema.FORMATS)}, each with an optional context. "
        f"{advice}."
    )


def read(folder: Path, name: str) -> list[Row]:
    """Return the rows of one file of a saved dataset, such as "train"."""
    return cast(list[Row], read_jsonl(folder / f"{name}.jsonl"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that `write_jsonl` wrote.

    Raises ValueError with the number of a line that is not JSON.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, in UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def save(
    folder: Path,
    files: dict[str, list[Row]],
    rejected: list[Rejected],
    card: str,
    **fields: Any,
) -> dict[str, Any]:
    """Write a dataset's files, its card and its recipe; return the recipe.

    `files` has the rows of each file: {"train": [...], "test": [...]}. All files are
    written to a temporary folder, which then replaces `folder`: an older dataset stays
    complete until then. Raises ValueError when a file would be empty, and
    FileExistsError when `folder` is not a saved dataset.
    """
    empty = [name for name, rows in files.items() if not rows]
    if empty or not files:
        what = ", ".join(empty) or "the dataset"
        raise ValueError(f"Nothing is saved, because {what} has no rows.")
    part = folder.with_name(f".{folder.name}.part")
    workspace.restore(folder)
    _check_replaceable(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    hashes = _write_files(part, files, rejected)
    hub.write_card(part, _card_header(files), folder.name, card)
    source = Path(fields.get("source", "")).expanduser()
    if source.is_file():
        hashes["source"] = recipe.sha256(source)
    made = recipe.write(part, kind="dataset", name=folder.name, **fields, sha256=hashes)
    if folder.exists():
        print(f"replacing the older dataset {folder.name}")
    workspace.replace(part, folder)
    return made


def _write_files(
    folder: Path, files: dict[str, list[Row]], rejected: list[Rejected]
) -> dict[str, str]:
    """Write the rows and the rejected rows; return the SHA-256 of each file."""
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "rejected.jsonl", [r.as_dict() for r in rejected])
    return {path.name: recipe.sha256(path) for path in sorted(folder.glob("*.jsonl"))}


def _card_header(files: Iterable[str]) -> dict[str, Any]:
    """Return the card's metadata, in which `load_dataset` finds the splits."""
    splits = [{"split": name, "path": f"{name}.jsonl"} for name in files]
    return {
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": splits}],
    }


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds more than a saved dataset."""
    made = recipe.read(folder) if (folder / "recipe.json").is_file() else {}
    rows = made.get("sha256", {})
    workspace.check_replaceable(
        folder,
        "DATASET_NAME",
        marks=["recipe.json"] if "train.jsonl" in rows else [],
        files={"recipe.json", "README.md", *rows},
    )
