"""What is wrong with a notebook that JupyterLab ran and saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDGET = "application/vnd.jupyter.widget-view+json"


def problems(saved: Any, original: Any) -> list[str]:
    """Compare a saved notebook with the original: all cells must have run, in order."""
    found = []
    if [c.source for c in saved.cells] != [c.source for c in original.cells]:
        found.append("the saved notebook does not have the cells of the original")
    if "widgets" in saved.metadata:
        found.append("the state of the widgets was saved in the notebook")
    ran = 0
    for number, cell in enumerate(saved.cells, start=1):
        if cell.cell_type != "code":
            continue
        ran += 1
        if cell.execution_count != ran:
            found.append(f"cell {number} ran as {cell.execution_count}, not as {ran}")
        for out in cell.outputs:
            if out.output_type == "error":
                found.append(f"cell {number} raised {out.ename}: {out.evalue}")
    return found


def widget_cells(saved: Any) -> Iterator[int]:
    """Yield the index of each cell whose output contains a widget."""
    for index, cell in enumerate(saved.cells):
        if any(WIDGET in out.get("data", {}) for out in cell.get("outputs", [])):
            yield index


def find_cell(notebook: Any, code: str) -> int:
    """Return the index of the one code cell that contains `code`."""
    cells = enumerate(notebook.cells)
    (index,) = (i for i, c in cells if c.cell_type == "code" and code in c.source)
    return index
