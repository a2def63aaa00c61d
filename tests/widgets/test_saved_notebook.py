"""The checks that `make test-widgets` makes on a notebook that JupyterLab saved."""

from __future__ import annotations

import copy

import nbformat
import pytest
from helpers.saved_notebook import WIDGET, find_cell, problems, widget_cells

v4 = nbformat.v4


@pytest.fixture
def original():
    cells = [
        v4.new_code_cell("a = 1"),
        v4.new_markdown_cell("b"),
        v4.new_code_cell("a"),
    ]
    return v4.new_notebook(cells=cells)


@pytest.fixture
def saved(original):
    ran = copy.deepcopy(original)
    ran.cells[0].execution_count, ran.cells[2].execution_count = 1, 2
    return ran


def test_problems_of_a_whole_run(saved, original):
    assert problems(saved, original) == []


def test_problems_name_an_error(saved, original):
    saved.cells[2].outputs = [
        v4.new_output("error", ename="NameError", evalue="'base'")
    ]
    assert problems(saved, original) == ["cell 3 raised NameError: 'base'"]


def test_problems_name_cells_that_did_not_run(saved, original):
    saved.cells[0].execution_count = None
    assert problems(saved, original) == ["cell 1 ran as None, not as 1"]


def test_problems_name_cells_that_ran_twice(saved, original):
    saved.cells[2].execution_count = 3
    assert problems(saved, original) == ["cell 3 ran as 3, not as 2"]


def test_problems_find_a_missing_cell(saved, original):
    del saved.cells[1]
    (found,) = problems(saved, original)
    assert "does not have the cells of the original" in found


def test_problems_find_saved_state(saved, original):
    saved.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    (found,) = problems(saved, original)
    assert "state of the widgets was saved" in found


def test_widget_cells(saved):
    view = v4.new_output("display_data", data={WIDGET: {"model_id": "1"}})
    saved.cells[2].outputs = [v4.new_output("stream", text="x"), view]
    assert list(widget_cells(saved)) == [2]


def test_find_cell(saved):
    assert find_cell(saved, "a = ") == 0
    with pytest.raises(ValueError):
        find_cell(saved, "a")  # in two cells
    with pytest.raises(ValueError):
        find_cell(saved, "b")  # is text
