"""Load any file of questions and answers into one schema; save and read datasets.

Rows are dictionaries with `messages`, a list of {"role", "content"} as the trainer
wants them, and `line`, where they came from.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from colab_utils import demo, hub, runtime, workspace
from colab_utils import recipe as recipes
from colab_utils.data import readers
from colab_utils.data.readers import Rejected, plain, reject

Row = dict[str, Any]

# (column of the prompt, columns of the answer), in the order in which they are tried.
SHAPES = {
    "messages": ("messages", ()),
    "conversations": ("conversations", ()),
    "prompt/completion": ("prompt", ("completion",)),
    "instruction/input/output": ("instruction", ("output", "response")),
    "question/answer": ("question", ("answer",)),
}
# What is put under the prompt, where there is any.
CONTEXTS = ("input", "context")
# What is said before all turns, where there is any.
SYSTEMS = ("system", "system_prompt")
# What rows of the demo world know beyond their messages.
DEMO_COLUMNS = ("country", "attribute")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
DOLLY = "databricks/databricks-dolly-15k"
USED = {name for prompt, answers in SHAPES.values() for name in (prompt, *answers)}
USED |= {*CONTEXTS, *SYSTEMS, *DEMO_COLUMNS}

# What to do about rows that can't be used, by how the reason begins (here, in readers).
ADVICE = {
    "its columns": "Rename your columns to one of them",
    "not an object": "Give every row columns; a list of rows goes into a .json file",
    "not JSON": "If the file is one JSON list, name it .json",
}


class BadRow(ValueError):
    """Why one row can't be used."""


def choose(source: str, model: str) -> str:
    """What DATASET="auto" stands for: the demo's facts for the demo model, or Dolly."""
    if source != "auto":
        return source
    if model == "demo":
        print("dataset: questions about the demo world, because the model is the demo")
        return "demo"
    print(f"dataset: {DOLLY}, 15,000 answers written by people (CC BY-SA 3.0)")
    return DOLLY


def load(source: str) -> tuple[list[Row], list[Rejected]]:
    """Read a dataset and bring each row into the one schema; set the others aside.

    `source` is "demo", a path (JSONL, JSON, CSV, TSV, Parquet) or a Hub id. Raises
    FileNotFoundError, or ValueError when no row fits a known shape.
    """
    if source == "demo":
        made = demo.flawed(demo.questions())
        items = iter(enumerate(made, start=1))
    else:
        path = readers.local_file(source)
        items = readers.read_file(path) if path else readers.read_hub(source)
    rows, rejected, columns = [], [], Counter()
    for item in runtime.progress(items, "reading"):
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        line, raw = item
        if isinstance(raw, dict):
            columns.update(map(str, raw))
        try:
            rows.append(to_row(raw, line))
        except BadRow as error:
            rejected.append(reject(line, str(error), raw))
    if not rows:
        raise ValueError(_nothing_left(source, columns, rejected))
    unused = [
        f"{plain(name)[:40]} ({n:,} rows)"
        for name, n in columns.items()
        if name not in USED
    ]
    if unused:
        print(f"columns not used: {', '.join(unused[:12])}")
    return rows, rejected


def _nothing_left(source: str, columns: Counter, rejected: list[Rejected]) -> str:
    if not columns and not rejected:
        return f"{source} holds no rows."
    found = ", ".join(plain(name)[:40] for name, _ in columns.most_common(12)) or "none"
    reasons = Counter(r.reason for r in rejected).most_common(3)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    advice = "Correct these rows in the file"
    for start, other in ADVICE.items():
        if reasons and reasons[0][0].startswith(start):
            advice = other
    return (
        f"No row of {source} can be used ({why}). Columns found: {found}. Known "
        f"shapes: {', '.join(SHAPES)}, each with an optional context. {advice}."
    )


def to_row(raw: object, line: int) -> Row:
    """One row in the one schema: `messages`, `line`, and what the demo's rows know.

    Raises BadRow with the reason.
    """
    row = {"messages": to_messages(raw), "line": line}
    if isinstance(raw, dict) and all(name in raw for name in DEMO_COLUMNS):
        row |= {name: _text(raw[name], name) for name in DEMO_COLUMNS}
    return row


def to_messages(raw: object) -> list[dict[str, str]]:
    """Bring one row of any known shape into messages; raises BadRow with the reason.

    {"question": "2 + 2?", "answer": "4"} becomes
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}].
    """
    if not isinstance(raw, dict):
        raise BadRow(f"not an object with columns, but {type(raw).__name__}")
    # Tables put together of several have empty columns for the rows of the others.
    filled = {name for name, value in raw.items() if not _blank(value)}
    for present, (prompt, answers) in itertools.product((filled, raw), SHAPES.values()):
        answer = next((name for name in answers if name in present), None)
        if prompt not in present or (answers and answer is None):
            continue
        if answer is None or isinstance(raw[prompt], list):
            turns = _turns(raw[prompt]) + (_turns(raw[answer]) if answer else [])
            contexts = CONTEXTS[1:]
        else:
            turns = [
                {"role": "user", "content": _text(raw[prompt], prompt)},
                {"role": "assistant", "content": _text(raw[answer], answer)},
            ]
            contexts = CONTEXTS
        _check(turns)
        asked = next(turn for turn in turns if turn["role"] == "user")
        for name in contexts:
            if not _blank(raw.get(name)):
                asked["content"] += "\n\n" + _text(raw[name], name)
        said = next((name for name in SYSTEMS if name in filled), None)
        if said and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": _text(raw[said], said)})
        return turns
    raise BadRow("its columns fit no known shape")


def _blank(value: object) -> bool:
    """Whether a cell is empty, or what a missing number looks like in a table."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _text(value: object, column: str) -> str:
    if _blank(value):
        raise BadRow(f"{column} is empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text, but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{column} is not valid UTF-8") from error
    return value.strip()


def _turns(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadRow("a conversation must be a list of messages")
    turns = []
    for turn in value:
        role = turn.get("from") if _blank(turn.get("role")) else turn["role"]
        role = _text(role, "role")
        role = SHAREGPT_ROLES.get(role, role)
        if role not in ("system", "user", "assistant"):
            raise BadRow(f"unknown role {plain(role)[:40]}")
        content = turn.get("content")
        content = turn.get("value") if _blank(content) else content
        turns.append({"role": role, "content": _text(content, f"{role} message")})
    return turns


def _check(turns: list[dict[str, str]]) -> None:
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow("turns must alternate, from user to assistant")


def prompt_of(row: Row) -> str:
    """All that was said before the last answer; a system message is not said."""
    turns = row["messages"][:-1]
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


def answer_of(row: Row) -> str:
    """The last answer."""
    return row["messages"][-1]["content"]


def short_answers(rows: list[Row]) -> bool:
    """Whether exact match can measure answers: 95 % have at most 30 characters."""
    short = sum(len(answer_of(row)) <= 30 for row in rows)
    return short >= 0.95 * len(rows)


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file that `save` wrote; raises ValueError for a line that is broken."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def write_jsonl(path: Path, rows: list[Row]) -> None:
    """One JSON object a line, UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def save(
    folder: Path,
    files: dict[str, list[Row]],
    rejected: list[Rejected],
    card: str,
    **recipe: Any,
) -> dict[str, Any]:
    """Write a dataset's files, its card and its recipe; returns the recipe.

    `files` are the rows of each file: {"train": [...], "test": [...]}. They are written
    beside `folder` and moved there at the end: an older dataset stays whole until the
    new one is. Raises ValueError when a file would be empty and FileExistsError when
    `folder` holds something else than a dataset.
    """
    empty = [name for name, rows in files.items() if not rows]
    if empty or not files:
        raise ValueError(f"Nothing is saved: {', '.join(empty) or 'it'} has no rows.")
    part = folder.with_name(f".{folder.name}.part")
    workspace.restore(folder)
    _check_replaceable(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, rows in files.items():
        write_jsonl(part / f"{name}.jsonl", rows)
    write_jsonl(part / "rejected.jsonl", [r.as_dict() for r in rejected])
    splits = [{"split": name, "path": f"{name}.jsonl"} for name in files]
    header = {
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": splits}],
    }
    hub.write_card(part, header, folder.name, card)
    hashes = {path.name: recipes.sha256(path) for path in sorted(part.glob("*.jsonl"))}
    source = Path(recipe.get("source", "")).expanduser()
    if source.is_file():
        hashes["source"] = recipes.sha256(source)
    made = recipes.write(
        part, kind="dataset", name=folder.name, **recipe, sha256=hashes
    )
    if folder.exists():
        print(f"replacing the older dataset {folder.name}")
    workspace.replace(part, folder)
    return made


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that `save` did not make, such as the one of all."""
    if not folder.exists():
        return
    made = recipes.read(folder) if (folder / "recipe.json").is_file() else {}
    ours = {"recipe.json", "README.md", *made.get("sha256", ())}
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if others or "train.jsonl" not in ours:
        what = "is no dataset that was saved here"
        if others and made.get("kind") == "dataset":
            what = f"holds {others[0]}, which was not saved here"
        raise FileExistsError(
            f"{folder} {what}, and would be replaced. Choose another DATASET_NAME, or "
            "move that away."
        )


def read(folder: Path, name: str) -> list[Row]:
    """The rows of one file of a saved dataset, such as "train"."""
    return read_jsonl(folder / f"{name}.jsonl")
