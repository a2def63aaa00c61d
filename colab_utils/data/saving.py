"""Save datasets, and read saved ones."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from colab_utils import hub, locks, recipe, replacement, runtime, workspace
from colab_utils.data import describing
from colab_utils.data.describing import Facts
from colab_utils.data.schema import COLUMNS, Message, Rejected, Row, kind_of

# The notebook that trains on the rows of a kind.
NOTEBOOKS = {"instruction": "02_finetune_qlora", "preference": "09_preferences"}
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_ASCII = json.JSONEncoder(check_circular=False)


def read(folder: Path | str, name: str) -> list[Row]:
    """Return the rows of one file of a saved dataset, such as "train"."""
    rows = cast(list[Row], read_jsonl(Path(folder) / f"{name}.jsonl"))
    return [from_text(row) for row in rows]


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
                raise ValueError(
                    f"{path}, line {number}: {error}. Create the dataset again."
                ) from error
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, in UTF-8; only one row is in memory at a time."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(to_line(row) for row in rows)


def to_line(row: Mapping[str, object]) -> str:
    """Return a row as one line of a JSONL file."""
    # The encoder for ASCII is twice as fast. Without \u, both write the same.
    line = _ASCII.encode(row)
    escaped = "\\" in line and "\\u" in line
    return (_ENCODER.encode(row) if escaped else line) + "\n"


def row_kind(folder: Path) -> str:
    """Return the kind of the rows of a saved dataset.

    The recipe of an older dataset does not name it; its first row tells.
    """
    if kind := recipe.read(folder).get("row_kind"):
        return str(kind)
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        return kind_of(json.loads(file.readline()))


def check_kind(folder: Path, kind: str) -> None:
    """Raise ValueError if a saved dataset has rows of another kind than `kind`."""
    found = row_kind(folder)
    if found == kind:
        return
    other = NOTEBOOKS.get(found)
    advice = f" The notebook {other} trains on {found} rows." if other else ""
    raise ValueError(
        f"The dataset {folder.name} has {found} rows, but this notebook needs {kind} "
        f"rows ({', '.join(COLUMNS[kind])}). Set DATASET_NAME to a dataset of {kind} "
        f"rows, or make one: run 01_create_dataset with such a DATASET.{advice}"
    )


def to_text(row: Row) -> Row:
    """Return a row whose tools and tool-call arguments are JSON text.

    Each tool has other parameters, and each call has other arguments: they don't fit
    into columns. Without this, `datasets` fills the keys of all calls into each call.
    TRL reads `tools` as JSON text, too.
    """
    return _convert(row, lambda value: json.dumps(value, ensure_ascii=False))


def from_text(row: Row) -> Row:
    """Return the row that `to_text` was given."""
    return _convert(row, _parse)


def _parse(value: Any) -> Any:
    """Return the value of a JSON text; other values stay."""
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(value)
    return value


def _convert(row: Row, change: Any) -> Row:
    """Apply `change` to the tools of a row and to the arguments of its tool calls."""
    changed: dict[str, Any] = {}
    if "tools" in row:
        changed["tools"] = change(row["tools"])
    for column in describing.CONVERSATIONS:
        turns = row.get(column)
        if isinstance(turns, list) and [t for t in turns if "tool_calls" in t]:
            changed[column] = [_convert_calls(turn, change) for turn in turns]
    return cast(Row, {**row, **changed}) if changed else row


def _convert_calls(turn: Message, change: Any) -> Message:
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    converted = []
    for call in calls:
        function = call.get("function", {})
        if "arguments" in function:
            arguments = change(function["arguments"])
            call = {**call, "function": {**function, "arguments": arguments}}
        converted.append(call)
    return {**turn, "tool_calls": converted}


def save(
    folder: Path,
    files: dict[str, list[Row]],
    rejected: list[Rejected],
    card: str,
    *,
    license: str | None = None,
    tokens: Mapping[str, list[int]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Write a dataset's files, its card and its recipe; return the recipe.

    `files` has the rows of each file: {"train": [...], "test": [...]}. The card shows
    statistics of them; `tokens` are the lengths of a file's rows in tokens, if they are
    known. Without a `license`, the card has that of the Hub dataset `source`, or says
    that it is unknown. `fields` go into the recipe. Its `rows` always count rows in,
    kept, rejected and of each file; a count in `fields["rows"]` comes before that.

    All files are written to a temporary folder, which then replaces `folder`: an older
    dataset stays complete until then. Raises ValueError when a file would be empty or
    when the rows are of several kinds, FileExistsError when `folder` is not a saved
    dataset, and OSError when the disk is full.
    """
    empty = [name for name, rows in files.items() if not rows]
    if empty or not files:
        what = ", ".join(empty) or "the dataset"
        raise ValueError(
            f"Nothing is saved, because {what} has no rows. Look at the reasons of the "
            "rejected rows, and relax the step that drops most of them."
        )
    facts = describing.facts(files, rejected, tokens or {})
    sizes = {name: len(rows) for name, rows in files.items()}
    kept, lost = sum(sizes.values()), len(rejected)
    counts = {"in": kept + lost, "kept": kept, "rejected": lost, **sizes}
    fields["rows"] = counts | fields.get("rows", {})
    with replacing(folder) as part:
        for name, rows in files.items():
            write_jsonl(part / f"{name}.jsonl", map(to_text, rows))
        write_jsonl(part / "rejected.jsonl", (r.as_dict() for r in rejected))
        return describe(part, folder.name, facts, card, license, fields)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Return a temporary folder, which replaces `folder` if the block succeeds.

    Raises RuntimeError when another process is saving it, FileExistsError when `folder`
    is not a saved dataset, and OSError, with the free disk space, when the disk is
    full; the temporary folder is then deleted.
    """
    with locks.writing(folder):
        yield from _replacing(folder)


def _replacing(folder: Path) -> Iterator[Path]:
    part = folder.with_name(f".{folder.name}.part")
    replacement.restore(folder)
    _check_replaceable(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()  # without parents: a disk that disappeared is not made anew
    try:
        yield part
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        full = (errno.ENOSPC, errno.EDQUOT)
        if not isinstance(error, OSError) or error.errno not in full:
            raise
        free = shutil.disk_usage(folder.parent).free / runtime.GIB
        raise OSError(
            error.errno,
            f"The disk is full: {folder} was not saved, and an older dataset is "
            f"unchanged. {folder.parent} has {free:.1f} GiB free. Free some space, or "
            "choose another disk with the environment variable WORKSPACE",
        ) from error
    if folder.exists():
        print(f"replacing the older dataset {folder.name}")
    replacement.replace(part, folder)


def describe(
    part: Path,
    name: str,
    facts: Facts,
    card: str,
    license: str | None,
    fields: dict[str, Any],
) -> dict[str, Any]:
    """Write figure, card and recipe next to the row files in `part`."""
    named = str(fields.get("source", ""))
    sources = describing.source_files(named)
    files = {path.name: path for path in sorted(part.glob("*.jsonl"))}
    for path in sources:
        files["source" if len(sources) == 1 else f"source: {path.name}"] = path
    with ThreadPoolExecutor() as threads:
        found = threads.map(recipe.sha256, files.values())
        describing.draw_lengths(facts, part / describing.FIGURE)  # meanwhile
        hashes = dict(zip(files, found, strict=True))
    license = license or describing.license_of(named)
    text = describing.text(facts, card, named, license, hashes.get("source"))
    hub.write_card(part, describing.header(facts, license), name, text)
    fields = {"row_kind": facts.kind, "license": license, **fields, "sha256": hashes}
    return recipe.write(part, kind="dataset", name=name, **fields)


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds more than a saved dataset."""
    made = recipe.read(folder) if (folder / "recipe.json").is_file() else {}
    rows = made.get("sha256", {})
    workspace.check_replaceable(
        folder,
        "DATASET_NAME",
        marks=["recipe.json"] if "train.jsonl" in rows else [],
        files={"recipe.json", "README.md", describing.FIGURE, *rows},
    )
