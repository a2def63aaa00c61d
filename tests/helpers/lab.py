"""JupyterLab in a browser: start it, run a notebook's cells, take screenshots."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import PLACES

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What JupyterLab and ipywidgets show in place of a widget.
BROKEN = ("javascript error", "Error displaying widget", "Loading widget")
SECONDS = 900  # for a notebook; it takes about 60 on two free cores

# JupyterLab's model of the open notebook. The page itself has only the visible cells.
OPEN = "window.jupyterapp.shell.currentWidget"
# All code cells have run, or one has failed.
ENDED = f"""() => {{
    const cells = {OPEN}.content.widgets.map(cell => cell.model);
    const code = cells.filter(cell => cell.type === "code");
    const failed = cell => cell.outputs.toJSON().some(o => o.output_type === "error");
    return code.every(cell => cell.executionCount) || code.some(failed);
}}"""
# The first save may be an autosave that began before the last cell ended.
SAVE = f"async () => {{ await {OPEN}.context.save(); await {OPEN}.context.save(); }}"
SCROLL = f"n => {OPEN}.content.scrollToItem(n, 'smart')"
LAST = f"() => {OPEN}.content.widgets.length - 1"


def chromium() -> str:
    """Return the path of the browser: the variable CHROMIUM, or an installed one."""
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.exit(
            f"None of {', '.join(BROWSERS)} is on PATH. Install one (Debian: apt-get "
            "install chromium), or name it: make test-widgets CHROMIUM=/path/to/chrome",
            returncode=1,
        )
    return found


@contextmanager
def server(folder: Path, packages: Path | None) -> Iterator[str]:
    """Run JupyterLab on `folder`; yield its address, with `{}` for a notebook's name.

    The kernel is this Python. It takes ipywidgets, and JupyterLab its part of
    ipywidgets, from the folder `packages` first, if there is one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    paths = [str(packages)] if packages else []
    environment = {k: v for k, v in os.environ.items() if k not in PLACES} | {
        "WORKSPACE": str(folder.parent / "workspace"),
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "tests")]),
        "JUPYTER_PATH": str(packages / "share" / "jupyter") if packages else "",
        "JUPYTER_CONFIG_DIR": str(folder.parent / "settings"),  # not the user's
    }
    log = folder.parent / "lab.log"
    with log.open("w") as file:
        lab = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            _wait(f"http://127.0.0.1:{port}/api", lab, log)
            yield f"http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?reset&token={token}"
        finally:
            lab.terminate()  # the server ends its kernels
            lab.wait(30)


def _wait(address: str, lab: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers."""
    for _ in range(240):
        assert lab.poll() is None, f"JupyterLab has ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(address)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"JupyterLab did not answer in 120 s: {log.read_text()[-2000:]}")


class Lab:
    """A page of JupyterLab at `address`; screenshots go to the folder `out`."""

    def __init__(self, page: Any, address: str, out: Path) -> None:
        self.page, self.address, self.out, self.shots = page, address, out, 0
        news = page.get_by_role("button", name="No", exact=True)
        page.add_locator_handler(news, lambda: news.click())

    def run_all(self, name: str) -> None:
        """Open a notebook, choose Run > Run All Cells, wait, and save it."""
        start = time.perf_counter()
        self.page.goto(self.address.format(name))
        idle = self.page.get_by_text("Python 3 (ipykernel) | Idle")
        idle.wait_for(timeout=120_000)
        self.menu("Run", "Run All Cells")
        limit = 1000 * SECONDS
        self.page.wait_for_function(ENDED, timeout=limit, polling=1000)
        self.page.evaluate(SAVE)
        print(f"\n{name}: all cells in {time.perf_counter() - start:.0f} s")

    def menu(self, *path: str) -> None:
        """Choose an entry of the menu bar."""
        self.page.get_by_role("menuitem", name=path[0], exact=True).click()
        for label in path[1:]:
            self.page.locator(".lm-Menu").get_by_text(label, exact=True).click()

    def scroll_to(self, cell: int) -> Any:
        """Scroll to a cell, by its number from 0, and return it."""
        self.page.evaluate(SCROLL, cell)
        return self.page.locator(f'.jp-Cell[data-windowed-list-index="{cell}"]')

    def broken_widget(self, cell: int) -> str | None:
        """Scroll to a cell with a widget; return what is shown in place of it."""
        output = self.scroll_to(cell).locator(".jp-OutputArea")
        output.locator(".jupyter-widgets").first.wait_for()
        shown = output.inner_text()
        return shown if any(words in shown for words in BROKEN) else None

    def add_cell(self, code: str) -> None:
        """Add a cell at the end, run it, and wait until it prints `ready`."""
        self.scroll_to(self.page.evaluate(LAST)).click()
        for key in ("Escape", "b", "Enter"):
            self.page.keyboard.press(key)
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Control+Enter")
        self.page.get_by_text("ready", exact=True).wait_for(timeout=90_000)

    def use_theme(self, name: str) -> None:
        """Switch JupyterLab to a theme."""
        self.menu("Settings", "Theme", name)
        self.page.wait_for_timeout(1500)

    def shot(self, name: str) -> None:
        """Take a screenshot, numbered in order."""
        self.page.screenshot(path=self.out / f"{self.shots:02}-{name}.png")
        self.shots += 1

    def close(self) -> None:
        """End the kernel of the open notebook, which holds a model in memory."""
        self.menu("Kernel", "Shut Down Kernel")
        self.page.get_by_text("No Kernel").first.wait_for()
