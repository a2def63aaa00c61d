"""The fixture that the tests of the notebook tools share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.notebook_project import PYPROJECT, README, VERSION, good, save, tool


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one good notebook, formatted, badges written."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "colab_utils").mkdir()
    init = tmp_path / "colab_utils" / "__init__.py"
    init.write_text(f'"""Helpers."""\n\n__version__ = "{VERSION}"\n')
    save(tmp_path, good())
    assert tool(tmp_path, "badges") == 0
    return tmp_path
