"""The first cells of a notebook read parameters however they were typed."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import papermill
import pytest

from tools.execute import use_this_interpreter

ROOT = Path(__file__).parents[2]
CHECKS = {"01": "nb01-daad99b6", "02": "nb02-29dfe63b", "03": "nb03-daad99b6"}
RATE = "nb02-94f304ca"  # where "auto" becomes a learning rate


def run_form(number: str, typed: dict, shown: str, folder: Path, *more: str) -> list:
    """Run a notebook's first cells, then those with the ids `more`; return values.

    `typed` is what papermill passes. `shown` names the variables to return.
    """
    path = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    nb = nbformat.read(path, as_version=4)
    ids = [cell.id for cell in nb.cells]
    first = nb.cells[: ids.index(CHECKS[number]) + 1]
    nb.cells = first + [cell for cell in nb.cells if cell.id in more]
    nb.cells.append(
        nbformat.v4.new_code_cell(f"import json\nprint(json.dumps([{shown}]))")
    )
    nbformat.write(nb, folder / "form.ipynb")
    with use_this_interpreter():
        done = papermill.execute_notebook(
            folder / "form.ipynb",
            folder / "done.ipynb",
            typed,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(folder),
        )
    return json.loads("".join(out["text"] for out in done.cells[-1].outputs))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("HEADLESS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


TYPED_01 = [
    (
        {"MAX_TOKENS": "64", "MAX_ROWS": 100.0, "TEST_SHARE": " 0.3"},
        [64, 100, 0.3, "auto"],
    ),
    (
        {"TEST_SHARE": "", "MODEL": None, "DATASET": "Auto", "KIND": ' "completion"'},
        [512, 2000, "auto", "completion"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "read"), TYPED_01)
def test_01_reads_what_was_typed(typed, read, tmp_path):
    typed = {"DATASET_NAME": ' "my-data" ', **typed}
    shown = "MAX_TOKENS, MAX_ROWS, TEST_SHARE, KIND, MODEL, DATASET, folder.name"
    found = run_form("01", typed, shown, tmp_path)
    assert found == [*read, "demo", "demo", "my-data"]
    assert [type(one) for one in found[:4]] == [type(one) for one in read]


TYPED_02 = [
    ({"RANK": "16.0", "EPOCHS": "3", "LEARNING_RATE": "2e-4"}, [16, 3.0, 2e-4]),
    (
        {"RANK": 8.0, "EPOCHS": 1, "LEARNING_RATE": None, "METHOD": " full"},
        [8, 1.0, 2e-4],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "read"), TYPED_02)
def test_02_reads_what_was_typed(typed, read, tmp_path):
    shown = "RANK, EPOCHS, LEARNING_RATE, MODEL"
    found = run_form("02", typed, shown, tmp_path, RATE)
    assert found == [*read, "demo"]
    assert [type(one) for one in found[:3]] == [int, float, float]
