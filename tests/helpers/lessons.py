"""Run notebooks of the course as a test does, and read what they claim and print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers import warm
from helpers.run_cells import run_jobs
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


def write_shorter(name: str, folder: Path, edits: dict[str, str]) -> str:
    """Write a copy of a notebook, with regular expressions replaced in its code.

    Returns its path without the suffix, as `run_in_one_process` takes it.
    """
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for pattern, text in edits.items():
        found = [re.subn(pattern, text, "".join(cell["source"])) for cell in code]
        assert any(count for _, count in found), f"{name} has no {pattern}"
        for cell, (source, _) in zip(code, found, strict=True):
            cell["source"] = source
    path = folder / name
    path.with_suffix(".ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return str(path)


def run_in_one_process(
    jobs: list[tuple[str, dict[str, Any], Path]], cold: bool = False
) -> list[list[str]]:
    """Run notebooks one after another in one process, without kernels; see `warm.run`.

    A job is a notebook, its parameters and its workspace. The notebook can also be the
    path of another one, without the suffix. Returns the error of each job ("" if there
    is none) and the text that it printed.
    """
    given = [(name, parameters, str(workspace)) for name, parameters, workspace in jobs]
    return warm.run(run_jobs, given, cold=cold)
