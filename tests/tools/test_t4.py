"""tools.t4 with a stand-in for Google's Colab CLI, whose runtime is a folder here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, writes

from tools import t4, t4_colab, t4_leaderboard, t4_session

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "helpers" / "fake_colab.py"
# Instead of tools/t4_remote.py: brings 01 back, then 02; STOP ends it in between.
REMOTE = """\
import hashlib, json, pathlib, sys, tarfile, time
folder = pathlib.Path(sys.argv[1])
print("got", " ".join(sys.argv[2:]), flush=True)
(folder / "pieces").mkdir()
(folder / "runs" / "1").mkdir(parents=True)
for number, name in enumerate(("01_a", "02_b"), start=1):
    (folder / "runs" / "1" / f"{name}.ipynb").write_text(name * 5000)
    sys.stdout.write(("y" * 99 + "\\n") * LINES)
    path = folder / "pieces" / f"{number}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "runs", "runs")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    piece = {"number": number, "path": str(path), "sha256": digest}
    state = {"done": number == 2, "failed": FAILED, "piece": piece}
    (folder / "state.part").write_text(json.dumps(state))
    (folder / "state.part").replace(folder / "state.json")
    print("finished", name, flush=True)
    time.sleep(0.3)
    STOP
"""


class Desk:
    """A project in git, the stand-in CLI, and a runtime in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.root, self.content = folder / "project", folder / "content"
        self.state = self.root / ".t4" / "sessions"
        for path in (self.home, self.content, self.root / "tools", folder / "bin"):
            path.mkdir(parents=True)
        self.program("colab", f'exec "{sys.executable}" "{FAKE}" "$@"')
        self.program("nvidia-smi", "echo Tesla T4")
        for path in (t4_leaderboard.DATA, t4_leaderboard.PAGE):
            (self.root / path).parent.mkdir(parents=True)
            shutil.copy(ROOT / path, self.root / path)
        (self.root / "notebooks").mkdir()
        cell = new_code_cell("EPOCHS = 3\nSEED = 0", metadata={"tags": ["parameters"]})
        for name in ("01_a", "02_b"):
            text = writes(new_notebook(cells=[cell]))
            (self.root / "notebooks" / f"{name}.ipynb").write_text(text)
        (self.root / ".gitignore").write_text(".t4/\n")
        (self.root / "tools" / "__init__.py").touch()
        self.remote()

    def program(self, name: str, command: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)

    def remote(self, failed: tuple = (), stop: str = "", lines: int = 0) -> None:
        """Commit the program that runs on the runtime."""
        text = REMOTE.replace("FAILED", repr([*failed])).replace("STOP", stop)
        text = text.replace("LINES", str(lines))
        (self.root / "tools" / "t4_remote.py").write_text(text)
        self.git("init", "-q")
        self.git("add", "-A")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        self.git(*who, "commit", "-qm", "A commit")

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.root, check=True)

    def plan(self, **answers: list) -> None:
        """Let calls of the CLI go wrong: a list for each command, one entry a call."""
        (self.home / "plan.json").write_text(json.dumps(answers))

    def calls(self, *names: str) -> list[list[str]]:
        """Return the arguments of all calls, or of those commands, without --config."""
        path = self.home / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line)[2:] for line in lines]
        return [call for call in calls if not names or call[0] in names]

    @property
    def arguments(self) -> list[str]:
        places = ["--remote", str(self.content), "--out", str(self.folder / "runs")]
        return [*places, "--colab", str(self.folder / "bin" / "colab")]

    def run(self, *arguments: str) -> int:
        return t4.main([*self.arguments, *arguments])

    @property
    def rented(self) -> bool:
        return (self.home / "endpoint").exists()

    def notebooks(self) -> list[str]:
        found = self.folder.glob("runs/t4-*/runs/1/*.ipynb")
        return sorted(path.stem for path in found)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Desk:
    desk = Desk(tmp_path)
    monkeypatch.setenv("FAKE_COLAB", str(desk.home))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(t4, "ROOT", desk.root)
    monkeypatch.setattr(t4, "STATE", desk.state)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))
    return desk


@pytest.mark.slow
def test_run_brings_everything_back_and_ends_the_runtime(desk, capsys):
    desk.remote(lines=2000)  # a log of 200 kB at once, which takes several looks
    assert desk.run("--notebooks", "01", "02", "--parameters", "EPOCHS=1") == 0
    out = capsys.readouterr().out
    assert desk.notebooks() == ["01_a", "02_b"]
    (log,) = desk.folder.glob("runs/t4-*/log.txt")
    assert "--notebooks 01 02" in log.read_text() and "EPOCHS=1" in log.read_text()
    assert log.read_text().count("y" * 99) == 4000
    assert "GPU: Tesla T4" in out and "brought back: 01_a, 02_b, in" in out
    (new,) = desk.calls("new")
    assert new[1:] == ["-s", new[2], "--gpu", "T4"]
    assert not desk.rented and not list(desk.state.iterdir())


@pytest.mark.slow
def test_run_uploads_a_dataset_that_is_a_file(desk, tmp_path):
    (tmp_path / "my rows.csv").write_text("question,answer\n")
    assert desk.run("--notebooks", "01", "--dataset", f"{tmp_path}/my rows.csv") == 0
    assert (desk.content / "my rows.csv").read_text() == "question,answer\n"
    (log,) = desk.folder.glob("runs/t4-*/log.txt")
    assert f"--dataset {desk.content}/my rows.csv" in log.read_text()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("no login", "The Colab CLI is not logged in. Next: log in once: run `"),
        ("no credentials", "The Colab CLI is not logged in."),
        ("bad login", "Google rejects the login of the Colab CLI"),
        ("bad code", "Google rejects the login of the Colab CLI"),
        ("denied", "Google denies access to Colab"),
        ("cut", "The connection to Colab broke"),
    ],
)
def test_login_that_fails_rents_nothing(answer, sentence, desk, capsys):
    desk.plan(sessions=[answer])
    assert desk.run() == 2
    errors = capsys.readouterr().err
    assert errors.startswith(sentence) and errors.count("\n") == 1
    assert not desk.calls("new") and not list(desk.folder.glob("runs/*"))
    assert not list(desk.state.iterdir())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("refused", "Colab gives no T4 now: a usage limit, no free GPU, or too many"),
        ("no quota", "Colab refuses a T4 to this account: the quota is used up"),
        ("no gpu", "Colab has no free T4 now"),
        ("cut", "The connection to Colab broke"),
        ("odd", "The Colab CLI failed: ZeroDivisionError"),
    ],
)
def test_runtime_that_is_refused(answer, sentence, desk, capsys):
    desk.plan(new=[answer], exec=[answer])
    assert desk.run() == 2
    errors = capsys.readouterr().err
    assert errors.startswith(sentence) and errors.count("\n") == 1
    assert not desk.rented and not desk.calls("upload")


def test_other_gpu_ends_the_run(desk, capsys):
    desk.program("nvidia-smi", "echo NVIDIA L4")
    assert desk.run() == 2
    assert "a runtime with NVIDIA L4 instead of a T4" in capsys.readouterr().err
    assert desk.calls("stop") and not desk.rented and not desk.calls("upload")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("exec", "cut"),
        ("exec", "silent"),
        ("exec", "lost"),
        ("exec", "late"),
        ("upload", "cut"),
        ("upload", "expired"),
        ("download", "lost"),
        ("download", "half"),
    ],
)
def test_connection_that_breaks_once_is_made_again(command, answer, desk, capsys):
    desk.plan(**{command: [answer, None, answer, answer]})
    assert desk.run("--notebooks", "01") == 0
    assert desk.notebooks() == ["01_a", "02_b"] and not desk.rented
    assert "connected again" in capsys.readouterr().out
    (log,) = desk.folder.glob("runs/t4-*/log.txt")
    assert log.read_text().count("got") == 1  # started once


@pytest.mark.slow
def test_connection_that_stays_broken_keeps_what_came(desk, monkeypatch, capsys):
    monkeypatch.setattr(t4_session, "PATIENCE", 0.5)
    desk.remote(stop="time.sleep(60)")
    desk.plan(exec=[None, None, None, None, None, None, None] + ["cut"] * 100)
    assert desk.run("--notebooks", "01") == 2
    out, errors = capsys.readouterr()
    assert "The connection to Colab broke" in errors
    assert "brought back: 01_a, in" in out and desk.notebooks() == ["01_a"]
    assert not desk.rented


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["ended", "replaced"])
def test_runtime_that_ends_early_keeps_what_came(answer, desk, capsys):
    desk.remote(stop="time.sleep(60)")
    desk.plan(exec=[None, None, None, None, None, None, None, answer])
    assert desk.run("--notebooks", "01") == 2
    assert "Colab has ended the runtime" in capsys.readouterr().err
    assert desk.notebooks() == ["01_a"] and not list(desk.state.iterdir())
    assert desk.rented == (answer == "replaced")  # that one is not ours


@pytest.mark.slow
def test_empty_runtime_is_noticed(desk, capsys):
    desk.remote(stop="folder.rename(folder.with_name('gone'))")
    assert desk.run("--notebooks", "01") == 2
    assert "replaced the runtime by an empty one" in capsys.readouterr().err


@pytest.mark.slow
def test_runtime_that_is_emptied_before_a_download_is_noticed(desk, capsys):
    desk.remote(stop="time.sleep(60)")
    desk.plan(download=["emptied"])
    assert desk.run("--notebooks", "01") == 2
    assert "replaced the runtime by an empty one" in capsys.readouterr().err


@pytest.mark.slow
def test_process_that_dies_is_noticed(desk, capsys):
    desk.remote(stop="raise SystemExit(9)")
    assert desk.run("--notebooks", "01") == 2
    assert "The run died on the T4" in capsys.readouterr().err
    assert desk.notebooks() == ["01_a"] and not desk.rented


@pytest.mark.slow
def test_step_that_fails_on_the_t4_is_named(desk, capsys):
    desk.remote(failed=("unsloth",))
    assert desk.run("--notebooks", "01") == 1
    assert "Failed on the T4: unsloth. See " in capsys.readouterr().out
    assert not desk.rented


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        {"new": ["interrupt"]},
        {"exec": ["interrupt"]},
        {"upload": ["interrupt"]},
        {"exec": [None, None, None, "interrupt"]},
    ],
)
def test_ctrl_c_ends_the_runtime(plan, desk, capsys):
    desk.plan(**plan)
    assert desk.run("--notebooks", "01") == 130
    assert capsys.readouterr().err == "Stopped.\n"
    assert desk.calls("new") and not desk.rented


@pytest.mark.slow
def test_runtime_that_cannot_be_ended_is_ended_next_time(desk, monkeypatch, capsys):
    desk.plan(stop=["cut"] * 3)
    assert desk.run("--notebooks", "01") == 2
    errors = capsys.readouterr().err
    (kept,) = desk.state.glob("*.kept")
    assert "could not be ended" in errors and f"--config {kept} stop -s" in errors
    assert desk.rented and desk.notebooks() == ["01_a", "02_b"]
    # As if the process that wrote the files were gone: its number is in their names.
    for path in list(desk.state.iterdir()):
        path.rename(path.with_name(f"t4-1-999999999{path.suffix}"))
    state = desk.state / "t4-1-999999999.kept"
    state.write_text(state.read_text().replace(kept.stem, "t4-1-999999999"))
    shutil.rmtree(desk.content)
    desk.content.mkdir()
    assert desk.run("--notebooks", "01") == 0
    assert "An earlier run was killed" in capsys.readouterr().out
    assert not desk.rented and not list(desk.state.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals_end_the_runtime(number, desk, capsys):
    """Only SIGKILL leaves the runtime, and then the next run ends it."""
    desk.remote(stop="time.sleep(100)")
    code = f"""
from pathlib import Path
from tools import t4
t4.ROOT, t4.STATE = Path({str(desk.root)!r}), Path({str(desk.state)!r})
t4.main({desk.arguments!r})"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while len(desk.calls("exec")) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(60)
    assert desk.rented == (number == signal.SIGKILL)
    if desk.rented:
        desk.remote()
        shutil.rmtree(desk.content)
        desk.content.mkdir()
        assert desk.run("--notebooks", "01") == 0
        assert "An earlier run was killed" in capsys.readouterr().out
        assert not desk.rented


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--notebooks", "09"), "No notebook begins with 09; there are: 01_a, 02_b."),
        (
            ("--parameters", "EPOCH=1"),
            "No notebook has the parameter EPOCH; there are: ",
        ),
        (("--parameters", "EPOCHS"), "EPOCHS is not NAME=value."),
    ],
)
def test_wrong_arguments_cost_nothing(arguments, sentence, desk, capsys):
    assert desk.run(*arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not desk.calls()


@pytest.mark.slow
def test_uncommitted_changes_are_reported(desk, capsys):
    (desk.root / "tools" / "__init__.py").write_text("changed = True\n")
    assert desk.run("--notebooks", "01") == 0
    assert "Uncommitted changes do not run" in capsys.readouterr().out
    text = (desk.content / "free-gpu-t4/course/tools/__init__.py").read_text()
    assert text == ""


def test_results_that_cannot_be_written_cost_nothing(desk, capsys):
    (desk.folder / "file").write_text("")
    assert desk.run("--notebooks", "01", "--out", str(desk.folder / "file")) == 2
    assert "Choose a folder with --out." in capsys.readouterr().err
    assert not desk.rented and not list(desk.state.iterdir())


def test_folder_without_git_is_refused(desk, monkeypatch, capsys):
    shutil.rmtree(desk.root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(desk.folder))
    assert desk.run("--notebooks", "01") == 2
    assert "git cannot pack the commit" in capsys.readouterr().err
    assert not desk.calls()


@pytest.mark.parametrize(
    ("arguments", "target", "rivals"),
    [
        ([], None, ["unsloth", "trl"]),
        ([], 0.5, ["unsloth"]),
        (["--rivals"], None, []),
        (["--notebooks", "01"], None, []),
        (["--parameters", "EPOCHS=2"], None, []),
        (["--notebooks", "01", "--rivals", "trl"], 0.5, ["trl"]),
    ],
)
def test_task_fills_in_what_is_left_open(arguments, target, rivals, monkeypatch):
    seen = {}
    monkeypatch.setattr(t4, "pack", lambda folder: seen["stop"])
    monkeypatch.setattr(t4_leaderboard, "read", lambda root: {"target": target})
    monkeypatch.setattr(t4, "check", lambda options: seen.update(options=options))
    with pytest.raises(KeyError):
        t4.main(arguments)
    options, whole = seen["options"], "--notebooks" not in arguments
    assert options.rivals == rivals
    assert options.model == t4_leaderboard.TASK["model"]
    assert options.dataset == (t4_leaderboard.TASK["dataset"] if whole else "")
    given = dict(pair.split("=") for pair in options.parameters)
    if whole:
        changed = "EPOCHS=2" in arguments
        assert given["EPOCHS"] == ("2" if changed else "1")
        assert given["MAX_ROWS"] == "2000"


def test_token_in_an_address_is_not_shown():
    line = "HTTPError: 503 Server Error: for url: http://a/api?colab-token=secret&x=1"
    assert "secret" not in str(t4_colab.explain(line, "colab"))
