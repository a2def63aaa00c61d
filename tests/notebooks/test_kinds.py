"""Rows of every kind go through 01; a notebook that can't use a dataset refuses it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from helpers.lessons import run_in_one_process

from colab_utils import data

pytestmark = pytest.mark.slow
TREES = ("oak", "elm", "ash", "yew", "maple", "cedar")


def towns() -> list[tuple[str, str]]:
    """Return the names of 40 towns, and the tree of each."""
    draw = random.Random(0)
    starts, ends = ("Cor", "Gal", "Lor", "Fen", "Nor"), ("ford", "wick", "burg", "ham")
    names = [a + b + c for c in ("", "don") for a in starts for b in ends]
    return [(name, draw.choice(TREES)) for name in names]


def question(town: str) -> str:
    return f"Which tree stands in the square of {town}?"


ROWS = {
    "instruction": [{"question": question(t), "answer": tree} for t, tree in towns()],
    "completion": [
        {"text": f"The tree in the square of {t} is an old {tree}."}
        for t, tree in towns()
    ],
    "preference": [
        {"prompt": question(t), "chosen": f"The {tree}.", "rejected": "Ask somebody."}
        for t, tree in towns()
    ],
    "classification": [
        {"text": f"In {t}, people sit under the {tree}.", "label": tree}
        for t, tree in towns()
    ],
    "fill-in-the-middle": [
        {"prefix": f"tree_of_{t} = ", "middle": f'"{tree}"', "suffix": f"\nprint({t})"}
        for t, tree in towns()
    ],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict[str, list[str]], dict[str, list[str]]]:
    """Run 01 on the rows of each kind, then 02 on each dataset of another kind.

    At last 05 looks for a dataset that does not exist.
    """
    folder = tmp_path_factory.mktemp("kinds")
    workspace = folder / "workspace"
    jobs = []
    for kind, rows in ROWS.items():
        path = folder / f"{kind}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given = {"DATASET": str(path), "DATASET_NAME": kind, "TEST_SHARE": 0.2}
        jobs.append(("01_create_dataset", given, workspace))
    others = list(ROWS)[1:]
    refusals = [*others, "missing"]
    names = ["02_finetune_qlora"] * len(others) + ["05_nano_lora"]
    for notebook, dataset in zip(names, refusals, strict=True):
        jobs.append((notebook, {"DATASET_NAME": dataset}, workspace))
    found = run_in_one_process(jobs)
    return (
        workspace / "datasets",
        dict(zip(ROWS, found, strict=False)),
        dict(zip(refusals, found[len(ROWS) :], strict=True)),
    )


@pytest.mark.parametrize("kind", ROWS)
def test_01_takes_rows_of_each_kind(done, kind):
    folder, made, _ = done
    error, printed = made[kind]
    assert error == ""
    assert f"kind: {kind}, by its column" in printed
    assert json.loads((folder / kind / "recipe.json").read_text())["row_kind"] == kind
    train, test = (data.read(folder / kind, name) for name in ("train", "test"))
    assert {data.kind_of(row) for row in train + test} == {kind}
    assert len(train) + len(test) == len(ROWS[kind])
    assert 4 <= len(test) <= 12


@pytest.mark.parametrize("kind", list(ROWS)[1:])
def test_02_refuses_rows_of_another_kind(done, kind):
    error, _ = done[2][kind]
    assert error.startswith(f"ValueError: The dataset {kind} has {kind} rows, but this")
    assert "needs instruction rows (messages)" in error


def test_05_names_the_notebook_that_makes_a_missing_dataset(done):
    error, _ = done[2]["missing"]
    assert "Run the notebook 01_create_dataset" in error
