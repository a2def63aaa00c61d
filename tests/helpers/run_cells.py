"""Run the code cells of notebooks one after another in one process, without a kernel.

    python run_cells.py < JOBS

JOBS is a JSON list of [notebook, parameters, workspace]. Prints a JSON list with the
error of each ("" if there is none) and the text that it printed. One process for
several runs imports the libraries once, which takes longer than most of these runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HEADLESS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
ROOT = Path(__file__).parents[2]


def load_libraries() -> None:
    """Import what most notebooks import, and keep it out of garbage collection.

    The notebooks often free memory, and each time the collector would search the
    libraries' objects, which takes half a second.
    """
    from colab_utils import runtime

    runtime.quiet()  # as the notebooks do, before the other imports
    for name in ("datasets", "matplotlib.pyplot", "colab_utils.training.sft"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


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
    load_libraries()
    print(json.dumps([attempt(*job) for job in json.load(sys.stdin)]))
