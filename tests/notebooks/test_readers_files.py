"""The notebooks write only into their results, and import only names that exist."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from colab_utils import data
from colab_utils.workspace import Workspace

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_names_a_file_in_the_workspace(path):
    """A file directly in the workspace may be the reader's."""
    assert [text for text in code_cells(path) if "workspace.folder" in text] == []


@pytest.mark.slow
def test_names_that_a_notebook_imports_from_the_package_exist():
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.ImportFrom) and "colab_utils" in str(
                    node.module
                ):
                    for alias in node.names:
                        assert _exists(str(node.module), alias.name), (path, alias.name)


def _exists(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    if hasattr(found, name) or not hasattr(found, "__path__"):
        return hasattr(found, name)
    return importlib.util.find_spec(f"{module}.{name}") is not None


def test_own_rows_leave_the_readers_file(tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text("5,000 rows")
    first = next(path for path in NOTEBOOKS if path.stem == "01_create_dataset")
    (cell,) = [text for text in code_cells(first) if "\nown = [" in "\n" + text]
    exec(cell, {"data": data, "workspace": Workspace(tmp_path)})
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]
    assert (tmp_path / "own.jsonl").read_text() == "5,000 rows"
