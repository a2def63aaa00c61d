"""Try the chat box of notebook 03 and the planner of 02 in JupyterLab with a browser.

    pip install jupyterlab playwright      # and Chromium
    python tools/try_widgets.py

Needs the adapter that notebook 02 leaves in the workspace, and keeps screenshots. The
versions of ipywidgets and JupyterLab are those of the Python that runs this.
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

ROOT = Path(__file__).resolve().parents[1]

NEEDED = (
    "import ",
    "ADAPTER_NAME =",
    "folder =",
    "load_adapter",
    "questions =",
    "def reply",
    "chat_box",
)

# After the cells of the notebook: an answer slow enough to be stopped, and errors.
SLOW = """
import time

def slowly(messages, tuned, temperature, max_new_tokens):
    words = messages[-1]["content"]
    if words == "fail":
        raise ValueError("this <was> to fail")
    if words == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if words == "note":
        print("2 turns were left out: the context is full.")
    if words == "Wait.":
        time.sleep(2)
    for piece in reply(messages, tuned, temperature, max_new_tokens):
        time.sleep(0.2)
        yield piece

chat.reply = slowly
print("ready")
"""


PLANNER = ("RANK =", "import ", "llama =", "widgets.planner")


def notebook() -> Any:
    """Notebook 03 without what the chat doesn't need, `SLOW`, and 02's planner."""
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
    """JupyterLab with this Python as its kernel; the address with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", f"--ServerApp.root_dir={folder}"]
    command += [f"--IdentityProvider.token={token}"]
    environment = {**os.environ, "HEADLESS": "0", "CI": "", "PYTHONPATH": paths}
    environment["JUPYTER_CONFIG_DIR"] = str(folder / ".settings")  # not yours
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "widgets")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    os.environ.setdefault("WORKSPACE", str(ROOT / "workspace"))
    Workspace.open().find("adapters", "my-adapter")  # says what to run if it is missing
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
                begin(page, len(nb.cells))
                plan(page, expect, options.out)
                talk(page, expect, options.out)
            finally:
                page.screenshot(path=options.out / "last.png")
                browser.close()
    print(f"Both work. Look at the screenshots in {options.out}.")


def begin(page: Any, cells: int) -> None:
    """Run the notebook."""
    news = page.get_by_role("button", name="No", exact=True)
    page.add_locator_handler(news, lambda: news.click())
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.locator(".jp-Cell").first.click()
    for _ in range(cells):
        page.keyboard.press("Shift+Enter")
    page.get_by_text("ready", exact=True).wait_for(timeout=120_000)


def plan(page: Any, expect: Any, out: Path) -> None:
    """Move the planner's sliders: picture and text follow."""
    box = page.locator(".widget-vbox", has=page.locator("img.widget-image")).last
    picture, text = box.locator("img"), box.locator(".widget-html").last
    expect(text).to_contain_text("no layers recomputed", timeout=60_000)
    box.scroll_into_view_if_needed()
    page.screenshot(path=out / "planner-first.png")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth"), "it is cut at the right"
    assert box.bounding_box()["width"] < page.viewport_size["width"]
    before = picture.get_attribute("src")
    for name, value in (("length", "4096"), ("rows", "4")):
        readout = box.locator(".widget-hslider", has_text=name).locator(
            ".widget-readout"
        )
        readout.fill(value)
        readout.press("Enter")
    expect(text).not_to_contain_text("no layers recomputed")
    expect(picture).not_to_have_attribute("src", before)
    page.screenshot(path=out / "planner-longer.png")
    box.locator("select").first.select_option("full")
    expect(text).to_contain_text("Use METHOD = 'qlora'")
    page.screenshot(path=out / "planner-too-much.png")


def talk(page: Any, expect: Any, out: Path) -> None:
    """What a reader does with the chat box, and what should come of it."""
    box = page.locator(".widget-vbox", has=page.get_by_placeholder("Write a message"))
    box = box.last
    entry = box.get_by_placeholder("Write a message")
    log = box.locator(".widget-box").first
    entry.scroll_into_view_if_needed()

    def shot(name: str) -> None:
        taken = len(list(out.glob("[0-9]-*.png")))
        page.screenshot(path=out / f"{taken}-{name}.png")

    def button(name: str) -> Any:
        return box.get_by_role("button", name=name, exact=True)

    def send(text: str) -> None:
        entry.fill(text)
        entry.press("Enter")
        expect(log).to_contain_text(text)

    def answered() -> None:
        expect(button("Send")).to_be_enabled(timeout=60_000)

    shot("empty")
    send("What is the capital of France?")
    expect(log).to_contain_text("Paris", timeout=30_000)
    answered()
    expect(entry).to_have_value("")
    shot("tuned")

    box.locator(".widget-readout").last.fill("256")
    box.locator(".widget-readout").last.press("Enter")
    button("base").click()
    send("What is the currency of Japan?")
    expect(button("Stop")).to_be_enabled()
    expect(button("Send")).to_be_disabled()
    lengths = []
    for _ in range(6):
        lengths.append(len(log.inner_text()))
        page.wait_for_timeout(400)
    print("characters in the log, every 0.4 s:", lengths)
    assert lengths == sorted(lengths) and lengths[1] < lengths[-1]
    shot("streams")
    button("Stop").click()
    answered()
    expect(box).to_contain_text("Stopped.")
    shot("stopped")

    button("tuned").click()
    entry.fill("fail")
    entry.press("Enter")
    expect(box).to_contain_text("ValueError: this <was> to fail")
    expect(entry).to_have_value("fail")
    shot("error")
    entry.fill("memory")
    entry.press("Enter")
    expect(box).to_contain_text("The memory ran out")
    shot("memory")

    button("base").click()
    entry.fill("Wait.")
    button("Send").click()
    expect(button("Stop")).to_be_enabled()
    button("Stop").click()  # before the first word
    answered()
    expect(entry).to_have_value("Wait.")
    button("tuned").click()
    entry.press("Enter")  # unchanged: the browser sends the key alone
    expect(log).to_contain_text("Wait.")
    answered()
    expect(entry).to_have_value("")

    send("note")
    answered()
    expect(box).to_contain_text("2 turns were left out")
    shot("note")

    for country in ("Kenya", "Peru", "Italy", "Chad"):
        send(f"What is the currency of {country}?")
        answered()
    # Measured from the newest turn, as the order of the box is reversed.
    height, inside, scrolled = log.evaluate(
        "e => [e.scrollHeight, e.clientHeight, e.scrollTop]"
    )
    print(f"log of {height} px in {inside} px, scrolled by {scrolled}")
    assert height > inside and abs(scrolled) < 2

    entry.fill("Not yet.")  # the field is left, but not by Enter
    button("base").click()
    page.wait_for_timeout(1000)
    expect(entry).to_have_value("Not yet.")
    expect(log).not_to_contain_text("Not yet.")
    button("Send").click()
    expect(log).to_contain_text("Not yet.")
    expect(button("Stop")).to_be_enabled()
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for label in ("Theme", "JupyterLab Dark"):
        page.locator(".lm-Menu").get_by_text(label, exact=True).click()
    page.wait_for_timeout(1500)
    shot("dark")
    button("Clear").click()
    expect(log).to_have_text("")
    answered()
    expect(log).to_have_text("")
    shot("cleared")

    send("Wait.")
    button("Clear").click()
    entry.fill("Too early.")  # the model has not heard of it yet
    entry.press("Enter")
    expect(box).to_contain_text("Not sent yet")
    expect(entry).to_have_value("Too early.")
    shot("busy")
    answered()
    button("Send").click()
    expect(log).to_contain_text("Too early.")
    answered()
    expect(box).not_to_contain_text("Not sent yet")


if __name__ == "__main__":
    main()
