"""A claim says its number, fails where it must hold, and stays with the notebook."""

from __future__ import annotations

import math

import nbformat
import pytest

from colab_utils import evaluation
from tools.execute import run_notebook, use_this_interpreter


@pytest.mark.parametrize(
    ("value", "bounds", "holds"),
    [
        (0.3, {"at_least": 0.3}, True),
        (0.29, {"at_least": 0.3}, False),
        (0.3, {"at_most": 0.3}, True),
        (0.31, {"at_most": 0.3}, False),
        (0.2, {"at_least": 0.1, "at_most": 0.3}, True),
        (0.05, {"at_least": 0.1, "at_most": 0.3}, False),
        (math.nan, {"at_least": 0.1}, False),
        (math.nan, {"at_most": 0.1}, False),
    ],
)
def test_a_claim_prints_whether_it_holds(value, bounds, holds, capsys):
    evaluation.claim("the share is", value, **bounds, must_hold=False)
    line = capsys.readouterr().out
    assert line.startswith("the share is ")
    assert line.endswith(": holds\n" if holds else ": does not hold\n")


def test_a_claim_that_must_hold_raises_with_its_number(capsys):
    with pytest.raises(AssertionError, match=r"by 0\.1 \(claimed: at least 0\.3\)"):
        evaluation.claim("A beats B by", 0.1, at_least=0.3)
    assert "does not hold" in capsys.readouterr().out


def test_a_claim_needs_a_bound():
    with pytest.raises(ValueError, match="needs at_least, at_most or both"):
        evaluation.claim("the share is", 0.5)


@pytest.mark.slow
def test_a_run_collects_the_claims_of_a_notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("SEED = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import torch\n"
            "from colab_utils import evaluation\n"
            "evaluation.claim('one is', torch.tensor(1.0), at_least=1)\n"
            "evaluation.claim('two is', 2, at_most=1.5, must_hold=False)\n"
            "evaluation.claim('three is', 3, at_most=1)"
        ),
    ]
    notebook = tmp_path / "99_claims.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(made, notebook)
    (tmp_path / "out").mkdir()
    with use_this_interpreter():
        result = run_notebook(notebook, tmp_path / "out" / notebook.name, {"SEED": 4})
    assert "three is 3" in result["failure"]  # kept, although it stopped the notebook
    assert [(c["claim"], c["value"], c["holds"]) for c in result["claims"]] == [
        ("one is", 1, True),
        ("two is", 2, False),
        ("three is", 3, False),
    ]
    assert {(c["notebook"], c["seed"]) for c in result["claims"]} == {("99_claims", 4)}
