"""The first cells of a notebook read parameters however they were typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.lessons import NOTEBOOKS, run_in_one_process

pytestmark = pytest.mark.slow
CHECKS = {"01": "nb01-daad99b6", "02": "nb02-29dfe63b"}
RATE = "nb02-94f304ca"  # where "auto" becomes a learning rate
SHOWN = {
    "01": "MAX_TOKENS, MAX_ROWS, TEST_SHARE, KIND, MODEL, DATASET, folder.name",
    "02": "RANK, EPOCHS, LEARNING_RATE, MODEL",
}


def write_form(number: str, folder: Path) -> str:
    """Write a notebook's first cells, which then print the values that they read.

    Returns its path without the suffix.
    """
    path = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    nb = nbformat.read(path, as_version=4)
    ids = [cell.id for cell in nb.cells]
    first = nb.cells[: ids.index(CHECKS[number]) + 1]
    nb.cells = first + [cell for cell in nb.cells if cell.id == RATE]
    source = f"import json\nprint(json.dumps([{SHOWN[number]}]))"
    nb.cells.append(nbformat.v4.new_code_cell(source))
    form = folder / f"form-{number}"
    nbformat.write(nb, form.with_suffix(".ipynb"))
    return str(form)


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
TYPED_02 = [
    ({"RANK": "16.0", "EPOCHS": "3", "LEARNING_RATE": "2e-4"}, [16, 3.0, 2e-4]),
    (
        {"RANK": 8.0, "EPOCHS": 1, "LEARNING_RATE": None, "METHOD": " full"},
        [8, 1.0, 2e-4],
    ),
]


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> list[list[Any]]:
    """The values that the first cells read: those of 01, then those of 02."""
    folder = tmp_path_factory.mktemp("forms")
    named = {"DATASET_NAME": ' "my-data" '}
    given = [("01", named | typed) for typed, _ in TYPED_01]
    given += [("02", typed) for typed, _ in TYPED_02]
    jobs = [
        (write_form(number, folder), typed, folder / "workspace")
        for number, typed in given
    ]
    runs = run_in_one_process(jobs)
    assert [error for error, _ in runs] == [""] * len(jobs)
    return [json.loads(printed.splitlines()[-1]) for _, printed in runs]


@pytest.mark.parametrize("n", range(len(TYPED_01)))
def test_01_reads_what_was_typed(n, forms):
    read, found = TYPED_01[n][1], forms[n]
    assert found == [*read, "demo", "demo", "my-data"]
    assert [type(one) for one in found[:4]] == [type(one) for one in read]


@pytest.mark.parametrize("n", range(len(TYPED_02)))
def test_02_reads_what_was_typed(n, forms):
    read, found = TYPED_02[n][1], forms[len(TYPED_01) + n]
    assert found == [*read, "demo"]
    assert [type(one) for one in found[:3]] == [int, float, float]
