"""Run a notebook of the course as a test does, and read what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.course_report import claims as read_claims
from tools.execute import run_notebook, use_this_interpreter

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run_lesson(name: str, folder: Path, **parameters: Any) -> dict[str, float]:
    """Run a notebook headless on the CPU, with its workspace in `folder`.

    Returns what it claims, with the numbers that it measured. The executed notebook is
    `done.ipynb`.
    """
    with pytest.MonkeyPatch.context() as patch, use_this_interpreter():
        patch.setenv("WORKSPACE", str(folder / "workspace"))
        patch.setenv("HEADLESS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        done = folder / "done.ipynb"
        result = run_notebook(NOTEBOOKS / f"{name}.ipynb", done, parameters)
    assert result["failure"] is None
    return {one["claim"]: one["value"] for one in read_claims(done)}
