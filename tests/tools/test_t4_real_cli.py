"""tools.t4 with Google's real Colab CLI, and a stand-in for Colab's servers.

`make test-t4` installs the CLI into .t4/, which needs Python 3.12 or newer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers.colab_backend import Backend, write_wrapper
from nbformat.v4 import new_code_cell, new_notebook, writes

from tools import t4, t4_leaderboard, t4_session
from tools.t4_colab import Colab, ColabError, CutError, LoginError, SessionEndedError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".t4" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason="needs Google's Colab CLI in .t4/: `make test-t4` installs it",
    ),
]
NOTEBOOK = """\
import json, os, sys
from pathlib import Path
folder = Path(os.environ["WORKSPACE"], "datasets", "my-dataset")
folder.mkdir(parents=True)
(folder / "recipe.json").write_text(json.dumps({"made": "there"}))
print("trained", MODEL)"""


@pytest.fixture
def backend(tmp_path):
    backend = Backend()
    backend.start()
    backend.ready.wait()
    yield backend
    backend.stop()


@pytest.fixture
def program(backend, tmp_path, monkeypatch) -> str:
    """The real CLI, logged in as nobody, with the test's server as Colab."""
    monkeypatch.setenv("COLAB_CLI_RETRY_BACKOFF", "0")
    write_wrapper(tmp_path / "colab", PYTHON, tmp_path / "home", backend.port)
    return str(tmp_path / "colab")


@pytest.fixture
def colab(program, tmp_path, monkeypatch) -> Colab:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))
    (tmp_path / "state").mkdir()
    return Colab(program, "t4-1-2", tmp_path / "state")


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (401, LoginError, "Google rejects the login of the Colab CLI"),
        (403, LoginError, "Google denies access to Colab"),
        (500, CutError, "The connection to Colab broke"),
        ("cut", CutError, "The connection to Colab broke"),
    ],
)
def test_log_in_explains_what_the_cli_prints(fault, kind, sentence, colab, backend):
    backend.faults["assignments"] = [fault] * 3
    with pytest.raises(kind, match=sentence):
        colab.log_in()


def test_log_in_without_a_login(colab, tmp_path):
    (tmp_path / "home" / ".config" / "colab-cli" / "token.json").unlink()
    with pytest.raises(LoginError, match="The Colab CLI is not logged in"):
        colab.log_in()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (412, "Colab gives no T4 now"),
        (400, "Colab refuses a T4 to this account"),
        (503, "Colab has no free T4 now"),
        ("cut", "The connection to Colab broke .* Colab may have started a runtime"),
    ],
)
def test_new_explains_what_the_cli_prints(fault, sentence, colab, backend):
    backend.faults["assign"] = [fault] * 4  # the CLI itself tries four times
    with pytest.raises(ColabError, match=sentence):
        colab.new()
    assert not backend.rented
    colab.stop()  # there is nothing to end


def test_runtime_breaks_and_ends(colab, backend, tmp_path):
    """One runtime for all, since each call of the CLI's `exec` takes ten seconds."""
    colab.new()
    assert backend.asked == ["T4"]
    long = "x" * 100_000
    code = f"import json\nprint('T4 ' + json.dumps({{'text': {long!r}}}))"
    assert colab.run(code) == {"text": long}
    with pytest.raises(ColabError, match="ZeroDivisionError: division by zero"):
        colab.run("1 / 0")
    # The CLI forgets a runtime after any 401 or 404, but Colab still lists it.
    for fault in (401, 404, 503, "cut"):
        backend.faults["kernel"] = [fault]
        with pytest.raises(CutError):
            colab.run("print()")
    there, back = tmp_path / "there", tmp_path / "back"
    here = tmp_path / "here"
    here.write_bytes(os.urandom(3_000_000))
    colab.upload(here, str(there))
    for fault in (401, 404, 503, "cut"):
        backend.faults["contents"] = [fault]
        with pytest.raises(CutError) as error:
            colab.download(str(there), back)
        assert "proxy-token" not in str(error.value)
    colab.download(str(there), back)
    assert back.read_bytes() == here.read_bytes() == there.read_bytes()
    backend.rented = False
    with pytest.raises(SessionEndedError, match="Colab has ended the runtime"):
        colab.download(str(there), back)
    colab.stop()
    assert not list((tmp_path / "state").iterdir())


def test_stop_ends_a_runtime_that_the_cli_forgot(colab, backend, tmp_path):
    colab.new()
    colab.config.unlink()
    backend.faults["unassign"] = ["cut"]
    colab.stop()
    assert not backend.rented and backend.ended == 1
    assert not list((tmp_path / "state").iterdir())


def test_run_of_a_notebook(program, backend, tmp_path, monkeypatch):
    """The whole way: the real tools.t4_remote and tools.run_course as the runtime."""
    root = tmp_path / "project"
    for name in ("tools", "colab_utils"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for path in (t4_leaderboard.DATA, t4_leaderboard.PAGE):
        (root / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, root / path)
    (root / "notebooks").mkdir()
    first = new_code_cell('MODEL = "demo"', metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[first, new_code_cell(NOTEBOOK)])
    spec = {"display_name": "Python 3", "name": "python3"}
    notebook.metadata |= {"kernelspec": spec, "language_info": {"name": "python"}}
    (root / "notebooks" / "01_a.ipynb").write_text(writes(notebook))
    (root / ".gitignore").write_text(".t4/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A commit"]):
        subprocess.run([*git, *arguments], cwd=root, check=True)
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho Tesla T4\n")
    smi.chmod(0o755)
    (tmp_path / "content").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(t4, "ROOT", root)
    monkeypatch.setattr(t4, "STATE", root / ".t4" / "sessions")
    monkeypatch.setattr(t4_session, "POLL", 1.0)
    places = ["--remote", str(tmp_path / "content"), "--out", str(tmp_path / "runs")]
    arguments = ["--notebooks", "01", "--model", "TinyLlama", "--colab", program]
    assert t4.main([*places, *arguments]) == 0
    (results,) = (tmp_path / "runs").iterdir()
    (executed,) = results.glob("runs/*/01_a.ipynb")
    assert "trained TinyLlama" in executed.read_text()
    assert executed.with_suffix(".html").exists()
    (summary,) = results.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["notebooks"].keys() == {"01_a"}
    machine = json.loads((results / "machine.json").read_text())
    assert machine["gpu"] == "Tesla T4" and len(machine["commit"]) == 40
    recipe = results / "workspace" / "datasets" / "my-dataset" / "recipe.json"
    assert json.loads(recipe.read_text()) == {"made": "there"}
    assert "[1/1] 01_a" in (results / "log.txt").read_text()
    assert not backend.rented and backend.ended == 1
