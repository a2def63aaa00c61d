"""Run the code cells of notebooks one after another in one process, without a kernel.

    python run_cells.py < JOBS

JOBS is a JSON list of [notebook, parameters, workspace]. Prints a JSON list with the
error of each ("" if there is none) and the text that it printed. One process for
several runs imports the libraries once, which takes longer than most of these runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HEADLESS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
ROOT = Path(__file__).parents[2]


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


if __name__ == "__main__":
    print(json.dumps([attempt(*job) for job in json.load(sys.stdin)]))
