"""The set-up cell of the notebooks on machines like those of Colab and Kaggle.

pip, git, IPython and the packages are the real ones, in the versions of the image.
"""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import hosted
from helpers.hosted import cells, error, printed
from nbformat.v4 import new_code_cell

from colab_utils import install

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted(path.name for path in (hosted.ROOT / "notebooks").glob("*.ipynb"))
EXTRA = dict(pin.split("==") for pin in install.EXTRA)


def set_up(course: Path, notebook: str = "01"):
    """Return the set-up cell of a published notebook."""
    return cells(course, notebook)[1]


def test_setup_cell_is_the_same_in_all_notebooks(course):
    sources = {set_up(course, name).source for name in NOTEBOOKS}
    assert len(sources) == 1
    assert f"git+{hosted.ADDRESS}@v" in sources.pop()


def test_setup_adds_packages_and_replaces_none(course, new_machine, place):
    machine = new_machine(place)
    before = machine.packages()
    assert before["torchao"] == "0.10.0" and not EXTRA.keys() & before.keys()
    again = new_code_cell(set_up(course).source)
    first, second = machine.run([set_up(course), again]).cells
    added = ", ".join(f"{name} {version}" for name, version in EXTRA.items())
    assert printed(first) == (
        f"set-up: installed {added}; removed torchao 0.10.0 (peft refuses float16 LoRA "
        "with it)\n"
    )
    assert printed(second) == "set-up: nothing to do\n"
    after = machine.packages()
    assert after.pop("colab_utils").startswith(f"git+{hosted.ADDRESS}@")
    del before["torchao"]
    assert after == before | EXTRA


def test_harness_is_added_and_replaces_none(course, new_machine):
    """Notebook 12 asks for it before its imports."""
    machine = new_machine(hosted.COLAB)
    before = machine.packages()
    cell = machine.run([set_up(course), cells(course, "12")[2]]).cells[-1]
    assert not error(cell), error(cell)
    name, _, version = install.HARNESS.partition("==")
    assert f"installed {name} {version}" in printed(cell)
    after = machine.packages()
    del before["torchao"]
    assert {name: after.get(name) for name in before} == before


def test_setup_after_an_import_asks_for_a_restart(course, new_machine, place):
    machine = new_machine(place)
    loaded = new_code_cell("import torchao")
    _, cell = machine.run([loaded, set_up(course)]).cells
    first, second = printed(cell).splitlines()
    assert "removed torchao 0.10.0" in first
    assert second.startswith(
        "This notebook already loaded torchao 0.10.0 (on disk: none): choose "
    )
    assert "restart" in second.lower()


def one_sentence(cell) -> str:
    """Return the message of a cell's error, and check that it is all that is shown."""
    assert printed(cell) == ""
    (shown,) = cell.outputs
    assert shown["ename"] == "RuntimeError"
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(shown["traceback"]))
    assert "During handling" not in text and len(text.splitlines()) < 30, text
    assert "\n" not in shown["evalue"] and len(shown["evalue"]) < 300
    return shown["evalue"]


def test_setup_without_network(course, new_machine, place):
    machine = new_machine(place, hosted.NOWHERE)
    (cell,) = machine.run([set_up(course)]).cells
    said = one_sentence(cell)
    assert said.startswith("No network: GitHub or PyPI cannot be reached.")
    assert "turn on Settings > Internet" in said


def test_setup_without_package_index(course, new_machine, place):
    """GitHub answers and the package index does not; the package is there already."""
    machine = new_machine(place)
    machine.pip("install", "-q", "--no-deps", str(course))
    machine.variables |= {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": f"{hosted.NOWHERE}/simple",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "1",
    }
    before = machine.packages()
    (cell,) = machine.run([set_up(course)]).cells
    said = one_sentence(cell)
    advice = {"colab": "check the network", "kaggle": "turn on Settings > Internet"}
    assert advice[place.name] in said and said.endswith("then run this cell again.")
    assert machine.packages() == before


def test_setup_with_missing_tag(new_machine, place, tmp_path):
    untagged = hosted.publish(tmp_path, tag=False)
    machine = new_machine(place, str(untagged))
    (cell,) = machine.run([set_up(untagged)]).cells
    said = one_sentence(cell)
    assert f"pip cannot find git+{hosted.ADDRESS}@v" in said
    assert "has this tag" in said


@pytest.fixture
def private() -> Iterator[str]:
    """A server that asks for a password, as GitHub does for a missing repository."""

    class Ask(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Ask) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x"
        server.shutdown()
        thread.join()


def test_setup_with_wrong_address_asks_for_no_password(course, new_machine, private):
    machine = new_machine(hosted.COLAB, private)
    (cell,) = machine.run([set_up(course)], timeout=180).cells
    assert "check that this repository is public" in one_sentence(cell)


def test_setup_with_placeholder(new_machine, place):
    """The notebooks of this repository, before `make badges`."""
    machine = new_machine(place, hosted.NOWHERE)
    (cell,) = machine.run([set_up(hosted.ROOT)]).cells
    if "free-gpu-llama-/" not in cell.source:
        pytest.skip("make badges has replaced the placeholder")
    assert "no address yet" in one_sentence(cell)
    assert error(cell)["ename"] == "RuntimeError"
