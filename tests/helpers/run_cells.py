"""Run the code cells of notebooks one after another, without kernels."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SURROUNDINGS = {"HEADLESS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}


def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a notebook's code cells in order; return its variables."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    space: dict[str, Any] = {"__name__": name, "display": lambda *_: None}
    for number, cell in enumerate(notebook["cells"]):
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "setup" in tags:
            continue
        code = compile("".join(cell["source"]), f"{name}, cell {number}", "exec")
        exec(code, space)
        if "parameters" in tags:
            space |= given
    return space


def attempt(name: str, given: dict[str, Any], workspace: str) -> list[str]:
    """Run a notebook; return its error, and what it printed."""
    printed = io.StringIO()
    os.environ["WORKSPACE"] = workspace
    with contextlib.redirect_stdout(printed):
        try:
            run(name, given)
        except Exception as error:  # a cell can raise any
            return [f"{type(error).__name__}: {error}", printed.getvalue()]
    return ["", printed.getvalue()]


def run_jobs(jobs: list[tuple[str, dict[str, Any], str]]) -> list[list[str]]:
    """Run notebooks with their parameters and workspaces; return as `attempt` does."""
    os.environ |= SURROUNDINGS
    return [attempt(*job) for job in jobs]
