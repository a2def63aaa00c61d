"""Rows of every kind go through 01; a notebook that needs another kind refuses them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from colab_utils import data

pytestmark = pytest.mark.slow
RUN = Path(__file__).parents[1] / "helpers" / "run_cells.py"
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
    """Run 01 on the rows of each kind, then 02 on each dataset of another kind."""
    folder = tmp_path_factory.mktemp("kinds")
    jobs = []
    for kind, rows in ROWS.items():
        path = folder / f"{kind}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given = {"DATASET": str(path), "DATASET_NAME": kind, "TEST_SHARE": 0.2}
        jobs.append(["01_create_dataset", given])
    others = list(ROWS)[1:]
    jobs += [["02_finetune_qlora", {"DATASET_NAME": kind}] for kind in others]
    out = subprocess.run(
        [sys.executable, str(RUN)],
        input=json.dumps(jobs),
        env=os.environ | {"WORKSPACE": str(folder / "workspace")},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads(out.stdout.splitlines()[-1])
    return (
        folder / "workspace" / "datasets",
        dict(zip(ROWS, found, strict=False)),
        dict(zip(others, found[len(ROWS) :], strict=True)),
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
