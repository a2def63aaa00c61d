"""What a reader sees who clicks late, or says no, on a machine like Colab's."""

from __future__ import annotations

import json

import pytest
from helpers import hosted
from helpers.hosted import COLAB, cells, error, printed
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow


def test_drive_that_cannot_be_mounted(course, new_machine):
    """The reader runs the cell again after each error."""
    answers = ("refused", "failed", "slow", "forbidden", "allowed")
    machine = new_machine(COLAB, COLAB_DOUBLE_DRIVE=",".join(answers))
    code = [
        cell for cell in cells(course, "01", MODEL="demo") if "code" in cell.cell_type
    ]
    (place,) = (n for n, cell in enumerate(code) if "Workspace.open(" in cell.source)
    tries = [
        new_code_cell(code[place].source, metadata={"tags": ["raises-exception"]})
        for _ in answers
    ]
    *before, last = machine.run([*code[:place], *tries]).cells
    assert not any(map(error, before[:place])) and not error(last)
    assert "workspace: /content/drive/MyDrive/llama-workspace" in printed(last)
    said = [error(cell)["evalue"] for cell in before[place:]]
    for text in said:
        assert text.startswith("Google Drive could not be mounted: ")
        assert "set USE_DRIVE = False" in text and "drive=" not in text
    assert len(set(said)) == len(answers) - 1


def test_secret_granted_too_late(course, new_machine):
    """The first request gets no answer; the reader clicks, and runs the cell again."""
    granted = {"exists": True, "access": True, "payload": hosted.TOKEN}
    answers = json.dumps({"huggingface": [None, granted]})
    machine = new_machine(COLAB, COLAB_DOUBLE_SECRETS=answers)
    ask = "from colab_utils import hub\nfound = hub.token()"
    count = "from google.colab import _message\nprint(_message.calls()['huggingface'])"
    codes = [ask + "\nhub.token()", count, ask, count]
    run = machine.run([cells(course, "01")[1], *map(new_code_cell, codes)]).cells
    _, late, once, again, twice = map(printed, run)
    assert "access was not granted within 10 seconds" in late
    assert "'Grant access', then run this cell again" in late
    assert once == "1\n"  # two questions of the notebook in one cell: one window
    assert again == "Hugging Face token: Colab's secret `huggingface`\n"
    assert twice == "2\n"
