"""Run notebook 00, and compare its plans with the planner's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.course_report import claims as read_claims
from tools.execute import run_notebook, use_this_interpreter

NOTEBOOK = Path(__file__).parents[2] / "notebooks/00_start_here.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [150, 3000])
def test_00_plans_fit_the_card(tmp_path, tokens):
    """With longer rows fewer models fit, and the notebook still runs to its end."""
    with pytest.MonkeyPatch.context() as patch, use_this_interpreter():
        patch.setenv("WORKSPACE", str(tmp_path / "workspace"))
        patch.setenv("HEADLESS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        result = run_notebook(NOTEBOOK, tmp_path / "done.ipynb", {"TOKENS": tokens})
    assert result["failure"] is None
    claims = {
        one["claim"]: one["value"] for one in read_claims(tmp_path / "done.ipynb")
    }
    assert 8 < claims["Llama 2 7B, GiB"] < 14.26
    if tokens == 150:
        assert claims["hours for Llama 2 7B"] < 1
