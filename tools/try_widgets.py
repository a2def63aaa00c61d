"""Test the chat box of notebook 03 and the planner of 02 in JupyterLab in a browser.

    pip install jupyterlab playwright      # and Chromium
    python -m tools.try_widgets

Needs the adapter that notebook 02 writes into the workspace. Keeps screenshots. It uses
the ipywidgets and JupyterLab of the Python that runs it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from colab_utils.workspace import Workspace
from tools.chat_reader import ChatReader

ROOT = Path(__file__).resolve().parents[1]

NEEDED = (
    "import ",
    "ADAPTER_NAME =",
    "Workspace.open",
    "folder =",
    "load_adapter",
    "questions =",
    "def untuned",
    "def reply",
    "show_chat",
)

# Runs after the notebook's cells.
SLOW = """
from tools.slow_reply import slow_reply

chat.reply = slow_reply(reply)
print("ready")
"""
PLANNER = ("RANK =", "import ", "llama =", "show_planner")


def notebook() -> Any:
    """Return the cells of notebook 03 that the chat needs, `SLOW`, and 02's planner."""
    cells = []
    for name, needed in (("03_inference", NEEDED), ("02_finetune_qlora", PLANNER)):
        nb = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        cells += [cell for cell in code if any(word in cell.source for word in needed)]
        if name.startswith("03"):
            cells.append(nbformat.v4.new_code_cell(SLOW.strip()))
    nb.cells = cells
    return nb


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab with this Python as its kernel; yield its address with a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", f"--ServerApp.root_dir={folder}"]
    command += [f"--IdentityProvider.token={token}"]
    environment = {**os.environ, "HEADLESS": "0", "CI": "", "PYTHONPATH": paths}
    environment["JUPYTER_CONFIG_DIR"] = str(folder / ".settings")  # not the user's
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/doc/tree/widgets.ipynb?token={token}"
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api")
                    break
                except OSError:
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(20)


def main() -> None:
    """Run the notebook in JupyterLab, and use the planner and the chat box."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "widgets")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    os.environ.setdefault("WORKSPACE", str(ROOT / "workspace"))
    # The error of a missing adapter names the notebook to run.
    Workspace.open().find("adapters", "my-adapter")
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.png"):
        old.unlink()
    from playwright.sync_api import expect, sync_playwright

    with tempfile.TemporaryDirectory() as name, lab(Path(name)) as address:
        nb = notebook()
        nbformat.write(nb, Path(name) / "widgets.ipynb")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium)
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(address)
            try:
                run_cells(page, len(nb.cells))
                use_planner(page, expect, options.out)
                ChatReader(page, expect, options.out).talk()
            finally:
                page.screenshot(path=options.out / "last.png")
                browser.close()
    print(f"The chat box and the planner work. Screenshots: {options.out}")


def run_cells(page: Any, cells: int) -> None:
    """Run all cells, and wait for the last one."""
    news = page.get_by_role("button", name="No", exact=True)
    page.add_locator_handler(news, lambda: news.click())
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.locator(".jp-Cell").first.click()
    for _ in range(cells):
        page.keyboard.press("Shift+Enter")
    page.get_by_text("ready", exact=True).wait_for(timeout=120_000)


def use_planner(page: Any, expect: Any, out: Path) -> None:
    """Move the planner's sliders, and check that image and text follow."""
    box = page.locator(".widget-vbox", has=page.locator("img.widget-image")).last
    image, text = box.locator("img"), box.locator(".widget-html").last
    expect(text).to_contain_text("checkpointing for no layers", timeout=60_000)
    box.scroll_into_view_if_needed()
    page.screenshot(path=out / "planner-first.png")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth"), (
        "the planner is too wide"
    )
    assert box.bounding_box()["width"] < page.viewport_size["width"]
    before = image.get_attribute("src")
    for name, value in (("length", "4096"), ("rows", "4")):
        readout = box.locator(".widget-hslider", has_text=name).locator(
            ".widget-readout"
        )
        readout.fill(value)
        readout.press("Enter")
    expect(text).not_to_contain_text("checkpointing for no layers")
    expect(image).not_to_have_attribute("src", before)
    page.screenshot(path=out / "planner-longer.png")
    box.locator("select").first.select_option("full")
    expect(text).to_contain_text("Use METHOD = 'qlora'")
    page.screenshot(path=out / "planner-too-much.png")


if __name__ == "__main__":
    main()
