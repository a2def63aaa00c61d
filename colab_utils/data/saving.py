"""Save datasets, and read saved ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from colab_utils import hub, recipe, workspace
from colab_utils.data.schema import Rejected, Row


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
