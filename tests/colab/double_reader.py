"""What a reader sees who clicks late, or says no, on a machine like Colab's."""

from __future__ import annotations

import json

import pytest
from helpers import hosted
from helpers.hosted import COLAB, cells, error, printed
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow


def first_cells(course, **parameters: object) -> list:
    """Return the code cells of 01 up to the workspace."""
    found = cells(course, "01", **parameters)
    code = [cell for cell in found if cell.cell_type == "code"]
    (last,) = (n for n, cell in enumerate(code) if "Workspace.open(" in cell.source)
    return code[: last + 1]


@pytest.mark.parametrize("answer", ["refused", "failed", "slow", "forbidden"])
def test_drive_that_cannot_be_mounted(course, new_machine, answer):
    machine = new_machine(COLAB, COLAB_DOUBLE_DRIVE=answer)
    *before, last = machine.run(first_cells(course, USE_DRIVE=True)).cells
    assert not any(map(error, before))
    said = error(last)["evalue"]
    assert error(last)["ename"] == "RuntimeError"
    assert "USE_DRIVE = False" in said and "drive=" not in said
    assert said.startswith("Google Drive could not be mounted")


def test_secret_granted_too_late(course, new_machine):
    """The first request gets no answer; the reader clicks, and runs the cell again."""
    granted = {"exists": True, "access": True, "payload": hosted.TOKEN}
    answers = json.dumps({"huggingface": [None, granted]})
    machine = new_machine(COLAB, COLAB_DOUBLE_SECRETS=answers)
    ask = "from colab_utils import hub\nassert hub.token() is not None or True"
    count = "from google.colab import _message\nprint(_message.calls()['huggingface'])"
    codes = [ask + "\nhub.token()", count, ask, count]
    run = machine.run([cells(course, "01")[1], *map(new_code_cell, codes)]).cells
    _, late, once, again, twice = map(printed, run)
    assert "access was not granted within 10 seconds" in late
    assert "'Grant access', then run this cell again" in late
    assert once == "1\n"  # two questions of the notebook in one cell: one window
    assert again == "Hugging Face token: Colab's secret `huggingface`\n"
    assert twice == "2\n"
