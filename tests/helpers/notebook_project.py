"""A small project with one good notebook, for the tests of the notebook tools."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import notebook_addresses as addresses
from tools import notebooks

NAME = "01_good.ipynb"
README = "# Course\n\n<!-- notebooks -->\n<!-- /notebooks -->\n\nThe end.\n"
VERSION = "1.2.3"
PYPROJECT = '[project.urls]\nRepository = "https://github.com/first/course"\n'


def code(source: str, *tags: str) -> dict:
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def good() -> dict:
    """A notebook without a fault: 21 cells."""
    cells = [
        new_markdown_cell("# Count to six\n\nYou count things. Then you stop."),
        code("", "setup"),
        new_markdown_cell("All imports."),
        code("import math", "imports"),
        new_markdown_cell("What you may change."),
        code('COUNT = 6  # @param {type:"integer"}', "parameters"),
    ]
    for number in range(6):
        cells.append(new_markdown_cell(f"## Step {number}\n\nWhy this step."))
        cells.append(code(f"print(math.sqrt(COUNT) + {number})"))
    exercises = "## Exercises\n\n1. Set `COUNT` to 2.\n2. To 3.\n3. To 4."
    ends = ("## Summary\n\nIt counted.", exercises, "## Next\n\nNothing.")
    cells += map(new_markdown_cell, ends)
    cells[1].source = addresses.SETUP.format(address="first/course", version=VERSION)
    return new_notebook(cells=cells)


def save(root: Path, nb: dict, name: str = NAME) -> None:
    nbformat.write(nb, root / "notebooks" / name)


def tool(root: Path, task: str) -> int:
    return notebooks.main([task, "--root", str(root)])
