"""Other people's files go through `load`, with the counts that are expected.

The files lie next to the repository, in ../shared, and are not part of it. DATA_FILES
names another folder that has them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from colab_utils import data

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("DATA_FILES", ROOT.parent / "shared"))
BEFORE, AFTER = (
    "an answer before the first question",
    "a question after the last answer",
)
# File -> (kept, rejected, kind, rows with each repair)
FILES: dict[str, tuple[int, int, str, dict[str, int]]] = {
    "cases/aircraft.jsonl": (90, 0, "instruction", {}),
    "cases/bool.jsonl": (90, 0, "instruction", {}),
    "cases/capitals.csv": (90, 0, "instruction", {}),
    "cases/constant-prompt.jsonl": (90, 0, "instruction", {}),
    "cases/cp1252.csv": (90, 0, "instruction", {}),
    "cases/data.jsonl.gz": (90, 0, "instruction", {}),
    "cases/dict-of-lists.json": (90, 0, "instruction", {}),
    "cases/history.jsonl": (90, 0, "instruction", {}),
    "cases/input-output.jsonl": (90, 0, "instruction", {}),
    "cases/nested-data.json": (90, 0, "instruction", {}),
    "cases/orca.jsonl": (90, 0, "instruction", {}),
    "cases/parts.jsonl": (90, 0, "instruction", {}),
    "cases/pretty-stream.json": (90, 0, "instruction", {}),
    "cases/prompt-response.jsonl": (90, 0, "instruction", {}),
    "cases/same-instruction.jsonl": (135, 0, "instruction", {}),
    "cases/sep.csv": (90, 0, "instruction", {}),
    "cases/several-answers.jsonl": (112, 0, "instruction", {}),
    "cases/shared-context.jsonl": (160, 0, "instruction", {}),
    "cases/sharegpt.json": (
        90,
        0,
        "instruction",
        {f"{BEFORE} removed": 23, f"{AFTER} removed": 23, "system messages joined": 22},
    ),
    "cases/text-llama2.jsonl": (90, 0, "instruction", {}),
    "cases/tools-text.jsonl": (90, 0, "instruction", {}),
    "cases/tools.jsonl": (
        90,
        0,
        "instruction",
        {"a tool without a name removed": 90},
    ),
    "cases/weight.jsonl": (90, 0, "instruction", {}),
    "data/gsm8k-train.jsonl": (7473, 0, "instruction", {}),
    "data/code-alpaca-2k.json": (2015, 2, "instruction", {}),
    "data/hh-rlhf-harmless-test.jsonl.gz": (
        2308,
        4,
        "preference",
        {"assistant messages in a row joined": 9},
    ),
}
pytestmark = pytest.mark.skipif(
    not (FOLDER / "cases").is_dir(), reason=f"there is no folder {FOLDER}/cases"
)


@pytest.mark.parametrize("name", FILES)
def test_load_counts(name, capsys):
    kept, bad, kind, repairs = FILES[name]
    rows, rejected = data.load(str(FOLDER / name))
    assert (len(rows), len(rejected)) == (kept, bad)
    assert {data.kind_of(row) for row in rows} == {kind}
    printed = capsys.readouterr().out
    assert f"kind: {kind}, by its column" in printed
    for repair, count in repairs.items():
        assert f"{repair} ({count} rows)" in printed
    assert ("repaired: " in printed) == bool(repairs)


def test_all_files_are_in_the_table():
    files = [p for p in (FOLDER / "cases").iterdir() if p.name != "README.md"]
    assert {f"cases/{p.name}" for p in files} <= set(FILES)


def load(name: str) -> list[data.Row]:
    return data.load(str(FOLDER / "cases" / name))[0]


def test_what_must_not_vanish_is_kept():
    calls = Counter(
        "tool_calls" in turn
        for name in ("tools.jsonl", "tools-text.jsonl")
        for row in load(name)
        for turn in row["messages"]
        if turn["role"] == "assistant"
    )
    assert calls == {True: 180, False: 90}
    weights = Counter(
        turn.get("weight", 1)
        for row in load("weight.jsonl")
        for turn in row["messages"]
        if turn["role"] == "assistant"
    )
    assert weights == {0: 90, 1: 90}
    assert {len(row["messages"]) for row in load("history.jsonl")} == {4}
    assert {row["messages"][0]["content"] for row in load("orca.jsonl")} == {
        "Answer in one word."
    }
    answers = {data.answer_of(row) for row in load("bool.jsonl")}
    assert answers == {"true", "false"}
    assert not any(
        "[" in str(row["messages"])[1:-1] for row in load("text-llama2.jsonl")
    )
