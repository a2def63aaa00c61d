"""Run notebook 18, and check what it computes by hand and with the planner."""

from __future__ import annotations

import json

import pytest
from helpers.lessons import run_lesson

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The claims of the notebook, and what it printed."""
    folder = tmp_path_factory.mktemp("long")
    claims = run_lesson("18_long_documents", folder)
    cells = json.loads((folder / "done.ipynb").read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    return claims, "".join("".join(out.get("text", "")) for out in outputs)


def test_18_parts_compute_what_the_whole_computes(done):
    claims, _ = done
    assert claims["MLP in 8 pieces: relative difference"] < 1e-13  # seen: 2e-15
    assert claims["attention in tiles: relative difference"] < 1e-13  # seen: 1e-15
    assert claims["gradients in tiles: relative difference"] < 1e-5  # seen: 8e-7
    assert claims["peak of the MLP in 8 pieces, as a share"] < 0.4  # seen: 0.36
    assert claims["peak of attention in 6 tiles, as a share"] < 0.65  # seen: 0.62


def test_18_plans_131072_tokens_for_a_t4(done):
    claims, printed = done
    planned = claims["planned GiB, 131,072 tokens"]
    assert 13 < planned <= 14.2
    assert f"{planned:.2f} GiB at the peak" in printed
    assert claims["count by hand, relative error"] < 0.002  # seen: 0.0009


def test_18_runs_to_its_end_where_nothing_fits(tmp_path):
    claims = run_lesson("18_long_documents", tmp_path, LIMIT_GIB=3.5)
    assert claims["count by hand, relative error"] < 0.002
