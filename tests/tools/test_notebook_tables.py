"""The table of all notebooks in the first one: written, and checked."""

from __future__ import annotations

import nbformat
import pytest
from helpers.notebook_project import good, save, tool
from nbformat.v4 import new_markdown_cell

from tools import notebooks
from tools.notebook_tables import overview

FACTS = (
    "# {}\n\nYou do it.\n\n| | |\n|---|---|\n| **You build** | {} |\n"
    "| **It takes** | {} |"
)


def titled(title: str, built: str, time: str) -> dict:
    nb = good()
    nb.cells[0].source = FACTS.format(title, built, time)
    return nb


def test_overview_takes_title_result_and_time():
    found = {
        "02_x.ipynb": titled("Train | it", "a model", "2 minutes. More on a T4. Yes"),
        "03_y.ipynb": {"cells": [{"source": "# No facts\n\nNothing."}]},
    }
    link = "https://colab.research.google.com/github/me/it/blob/main/notebooks/"
    assert overview(found, "me/it").splitlines() == [
        "| Notebook | You build | It takes |",
        "|---|---|---|",
        rf"| [02: Train \| it]({link}02_x.ipynb) | a model | 2 minutes |",
        f"| [03: No facts]({link}03_y.ipynb) |  |  |",
    ]


@pytest.fixture
def front(project):
    """The project with a first notebook that has a table."""
    nb = titled("Start", "a plan", "a minute")
    nb.cells.insert(6, new_markdown_cell("<!-- notebooks -->\n<!-- /notebooks -->"))
    save(project, nb, "00_front.ipynb")
    assert tool(project, "badges") == 0
    assert notebooks.check(project) == []
    return project


def test_badges_fill_the_table_of_the_first_notebook(front):
    nb = nbformat.read(front / "notebooks/00_front.ipynb", 4)
    table = next(c.source for c in nb.cells if "<!-- notebooks -->" in c.source)
    assert "| [00: Start](" in table and "| a plan | a minute |" in table
    assert "| [01: Count to six](" in table


def test_check_finds_a_table_that_is_out_of_date(front):
    save(front, titled("Count to ten", "a number", "an hour"), "01_good.ipynb")
    assert tool(front, "format") == 0
    assert any("00_front.ipynb:7" in one for one in notebooks.check(front))
    assert tool(front, "badges") == 0
    assert notebooks.check(front) == []
