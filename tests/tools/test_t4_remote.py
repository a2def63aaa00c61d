"""tools.t4_remote on the demo model: notebooks, a rival, archives and rows."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tools import t4_leaderboard as leaderboard
from tools import t4_remote
from tools.notebook_addresses import SETUP
from tools.t4_remote import Packer, files

ROOT = Path(__file__).resolve().parents[2]
WORDS = "amber basin cedar delta ember fjord grove haven islet jetty knoll lagoon"
PARAMETERS = {"MAX_ROWS": 40, "MAX_TOKENS": 256, "TEST_SHARE": 0.2, "EPOCHS": 1}


def write_rows(path: Path) -> None:
    """Write questions whose answers are sentences, so that the metric is the loss."""
    draw, words = random.Random(0), WORDS.split()
    rows = [
        {
            "question": f"Tell me about {' '.join(draw.sample(words, 3))} {number}.",
            "answer": " ".join(draw.choices(words, k=24)).capitalize() + ".",
        }
        for number in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The folder of a run of 01, 02 and TRL, with a GPU in name only."""
    folder = tmp_path_factory.mktemp("t4")
    write_rows(folder / "rows.jsonl")
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho Tesla T4, 15360 MiB, 550.54\n")
    smi.chmod(0o755)
    arguments = ["--commit", "a" * 40, "--notebooks", "01", "02", "--model", "demo"]
    arguments += ["--dataset", str(folder / "rows.jsonl"), "--rivals", "trl"]
    pairs = [f"{name}={value}" for name, value in PARAMETERS.items()]
    command = [sys.executable, "-m", "tools.t4_remote", str(folder / "out")]
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *arguments, "--parameters", *pairs],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0
    return folder / "out"


@pytest.mark.slow
def test_archive_holds_notebooks_and_numbers_but_no_weights(out):
    state = json.loads((out / "state.json").read_text())
    assert state["done"] and state["failed"] == []
    assert state["piece"]["number"] >= 2  # 01 came before 02 was finished
    with tarfile.open(state["piece"]["path"]) as tar:
        names = {Path(name).name for name in tar.getnames()}
        paths = tar.getnames()
    assert {"01_create_dataset.ipynb", "02_finetune_qlora.html", "summary.json"} < names
    assert {"machine.json", "training_log.json", "recipe.json"} < names
    assert "workspace/adapters/trl/recipe.json" in paths
    assert not [name for name in paths if name.endswith((".safetensors", ".jsonl"))]


@pytest.mark.slow
def test_rows_come_from_the_files_of_the_run(out, monkeypatch):
    results = out / "results"
    rows = str(out.parent / "rows.jsonl")
    task = {"model": "demo", "dataset": rows, "parameters": {**PARAMETERS, "SEED": 0}}
    monkeypatch.setattr(leaderboard, "TASK", task)
    found, left_out = leaderboard.rows_of(results)
    assert left_out == []
    course, trl = found
    assert (course["trainer"], trl["trainer"]) == ("my-adapter", "trl")
    # The same model before training, the same rows, the same measure.
    assert course["loss_before"] == pytest.approx(trl["loss_before"], abs=1e-3)
    assert course["loss"] < course["loss_before"] and trl["loss"] < trl["loss_before"]
    assert course["data"] == trl["data"] and course["gpu"].startswith("Tesla T4")
    adapters = results / "workspace" / "adapters"
    log = json.loads((adapters / "trl" / "training_log.json").read_text())
    for name in ("my-adapter", "trl"):  # one epoch over the same tokens
        cost = json.loads((adapters / name / "recipe.json").read_text())["training"]
        assert cost["tokens"] == log[-1]["num_tokens"]
    assert course["planned_gib"] > 0 and trl["planned_gib"] is None
    board = {"target": None, "rows": found}
    assert "| this course | 0." in leaderboard.table(board)


def test_packer_packs_only_what_is_finished_and_new(tmp_path):
    packer, results = Packer(tmp_path), tmp_path / "results"
    run = results / "runs" / "20260101-000000"
    run.mkdir(parents=True)
    (results / "runs" / "latest").symlink_to(run.name)
    packer.pack()
    assert packer.number == 0
    (run / "01_a.ipynb").write_text("{}")
    assert files(results) == []  # it is still being executed
    (run / "01_a.html").write_text("")
    packer.pack()
    packer.pack()
    assert packer.number == 1
    with tarfile.open(packer.piece["path"]) as tar:
        names = sorted(tar.getnames())
    assert names == [f"runs/{run.name}/01_a.{end}" for end in ("html", "ipynb")]
    (run / "summary.json").write_text("{}")
    packer.pack()
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["piece"]["number"] == 2 and not state["done"]


@pytest.mark.slow
def test_step_that_fails_is_named_and_the_next_ones_run(tmp_path):
    command = [sys.executable, "-m", "tools.t4_remote", str(tmp_path)]
    arguments = ["--notebooks", "99", "--model", "demo", "--rivals", "trl"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == 1
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["done"] and state["failed"] == ["course", "trl"]


def test_set_up_installs_as_the_notebooks_do(monkeypatch):
    """The commit's package, then what the notebooks' cell calls, then papermill."""
    commands: list[list[str]] = []
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command)
    )
    t4_remote.set_up()
    (call,) = re.findall(r"^ *(install\.\w+\(\))", SETUP, re.MULTILINE)
    package, missing, papermill = commands
    assert package[-1] == str(ROOT) and "--no-deps" in package
    assert missing[-1] == f"from colab_utils import install; {call}"
    assert papermill[-1].startswith("papermill==")
