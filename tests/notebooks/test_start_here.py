"""Run notebook 00, and compare its plans with the planner's."""

from __future__ import annotations

import pytest
from helpers.lessons import run_lesson


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [150, 3000])
def test_00_plans_fit_the_card(tmp_path, tokens):
    """With longer rows fewer models fit, and the notebook still runs to its end."""
    claims = run_lesson("00_start_here", tmp_path, TOKENS=tokens)
    assert 8 < claims["Llama 2 7B, GiB"] < 14.26
    if tokens == 150:
        assert claims["hours for Llama 2 7B"] < 1
