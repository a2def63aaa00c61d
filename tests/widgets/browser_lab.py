"""Notebooks in JupyterLab in a browser, with ipywidgets 7 and 8: `make test-widgets`.

`pytest tests` does not collect this file: it needs playwright and Chromium. The tests
run in this order, in one workspace. The screenshots are in runs/widgets.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import front_end, lab
from helpers.chat_reader import ChatReader
from helpers.planner_reader import use_planner
from helpers.saved_notebook import find_cell, problems, widget_cells
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
# Where ipywidgets comes from: .venv has Colab's 7.7.1, and a folder of its own has 8.
PACKAGES = {"7": None, "8": ROOT / ".widgets-test" / "ipywidgets8"}


@pytest.fixture(scope="module", params=PACKAGES)
def packages(request) -> Path | None:
    """The folder of ipywidgets; ends the run if JupyterLab's part does not fit it."""
    folder = PACKAGES[request.param]
    versions = front_end.versions([str(folder)] if folder else [])
    print("\nipywidgets {}, jupyterlab_widgets {}".format(*versions))
    if wrong := front_end.mismatch(*versions):
        pytest.exit(wrong, returncode=1)
    assert versions[0].startswith(f"{request.param}.")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the notebooks' copies, next to the workspace."""
    return tmp_path_factory.mktemp("lab") / "notebooks"


@pytest.fixture(scope="module")
def page(packages, folder) -> Iterator[lab.Lab]:
    """JupyterLab in a browser, with fresh copies of the notebooks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)
    out = ROOT / "runs" / "widgets" / ("ipywidgets8" if packages else "ipywidgets7")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with lab.server(folder, packages) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=lab.chromium())
        tab = browser.new_page(viewport={"width": 1100, "height": 900})
        tab.set_default_timeout(90_000)
        expect.set_options(timeout=60_000)
        yield lab.Lab(tab, address, out)
        tab.screenshot(path=out / "last.png")
        browser.close()


def run_all(page: lab.Lab, folder: Path, name: str) -> Any:
    """Run all cells of a notebook, check what was saved, and return it."""
    page.run_all(name)
    saved = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    original = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert problems(saved, original) == []
    shown = {i + 1: page.broken_widget(i) for i in widget_cells(saved)}
    assert {cell: text for cell, text in shown.items() if text} == {}
    return saved


def test_dataset(page, folder):
    run_all(page, folder, "01_create_dataset")
    page.close()


def test_planner(page, folder):
    notebook = run_all(page, folder, "02_finetune_qlora")
    use_planner(page, find_cell(notebook, "widgets.show_planner("))
    page.close()


def test_chat(page, folder):
    notebook = run_all(page, folder, "03_inference")
    reader = ChatReader(page, find_cell(notebook, "widgets.show_chat("))
    reader.ask()
    reader.talk()
    page.close()
