"""Rows of the T4 leaderboard: computed from a run's files, or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tools import t4_leaderboard as leaderboard

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"gpu": "Tesla T4, 15360 MiB, 550.54", "commit": "a" * 40, "colab": "r-1"}
DATASET = {
    "source": "openai/gsm8k:main",
    "rows": {"in": 7473, "kept": 2000, "train": 1800, "test": 200},
    "parameters": {"max_tokens": 512, "seed": 0, "test_share": 0.1},
    "sha256": {"train.jsonl": "d" * 64},
}
ADAPTER = {
    "model": "NousResearch/Llama-2-7b-hf",
    "method": "qlora",
    "epochs": 1,
    "seed": 0,
    "data": "d" * 64,
    "made": "2026-11-26T10:00:00+00:00",
    "versions": {"torch": "2.11.0", "trl": "0.29.1", "accelerate": "1.14.0"},
    "results": {"loss": {"base": 1.2345, "tuned": 0.5012}},
    "training": {
        "tokens": 360_000,
        "seconds": 480.0,
        "peak_gib": 13.111,
        "planned_seconds": 450.0,
        "planned_gib": 13.5,
    },
}


def rival(name: str, loss: float, minutes: float) -> dict:
    adapter = copy.deepcopy(ADAPTER)
    cost = {"tokens": 360_000, "seconds": 60 * minutes, "peak_gib": 5.0}
    results = {"loss": {"base": 1.2345, "tuned": loss}}
    return {**adapter, "training": cost, "results": results, "trainer": name}


@pytest.fixture
def results(tmp_path):
    """Write a run's files; returns a function that changes one of them."""

    def write(path: str, value: dict) -> Path:
        file = tmp_path / "run" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
        return tmp_path / "run"

    write("machine.json", MACHINE)
    write("workspace/datasets/my-dataset/recipe.json", DATASET)
    write("workspace/adapters/my-adapter/recipe.json", ADAPTER)
    return write


@pytest.fixture
def root(tmp_path) -> Path:
    """A project with the empty leaderboard."""
    for path in (leaderboard.DATA, leaderboard.PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    empty = {"target": None, "rows": []}
    (tmp_path / leaderboard.DATA).write_text(json.dumps(empty))
    return tmp_path


def test_add_rows_of_the_course(results, root):
    lines = leaderboard.add_rows(results("x.json", {}), root)
    (row,) = leaderboard.read(root)["rows"]
    assert (row["minutes"], row["planned_minutes"]) == (8.0, 7.5)
    assert (row["tokens_per_second"], row["peak_gib"]) == (750, 13.11)
    assert (row["loss_before"], row["loss"]) == (1.2345, 0.5012)
    assert row["versions"] == {"torch": "2.11.0", "trl": "0.29.1"}
    assert lines[0] == "row for this course: 8.0 minutes"
    page = (root / leaderboard.PAGE).read_text()
    assert "| 8.0 (7.5) | 1.234 → 0.501 | 750 | 13.11 (13.50) |" in page
    assert "No row" not in page and "Target: not measured yet" in page


def test_trl_sets_the_target_and_slower_losses_miss_it(results, root):
    results("workspace/adapters/trl/recipe.json", rival("trl", 0.5001, 25.0))
    results("workspace/adapters/unsloth/recipe.json", rival("unsloth", 0.53, 7.0))
    leaderboard.add_rows(results("x.json", {}), root)
    board = leaderboard.read(root)
    assert board["target"] == 0.51 and len(board["rows"]) == 3
    table = leaderboard.table(board)
    order = [line.split(" | ")[1] for line in table.splitlines()[4:]]
    assert order == ["this course", "TRL and PEFT", "Unsloth"]
    assert "target not reached in 7.0" in table
    # A later run of TRL does not move it.
    results("workspace/adapters/trl/recipe.json", rival("trl", 0.4, 25.0))
    leaderboard.add_rows(results("x.json", {}), root)
    assert leaderboard.read(root)["target"] == 0.51


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        ("machine", {"gpu": "NVIDIA L4"}, "GPU is NVIDIA L4, and T4 in the task"),
        ("dataset", {"source": "demo"}, "DATASET is demo, and openai/gsm8k:main"),
        ("dataset", {"rows": {"kept": 500}}, "rows is 500, and 2000 in the task"),
        ("dataset", {"sha256": {"train.jsonl": "e"}}, "trained rows is dddd"),
        ("adapter", {"model": "demo"}, "MODEL is demo, and NousResearch"),
        ("adapter", {"epochs": 3}, "EPOCHS is 3, and 1 in the task"),
        ("adapter", {"seed": 1}, "SEED is 1, and 0 in the task"),
        ("adapter", {"method": "lora"}, "METHOD is lora, and qlora in the task"),
        ("adapter", {"results": {}}, "its held-out loss is missing"),
    ],
)
def test_another_run_gives_no_row(path, change, sentence, results, root):
    files = {
        "machine": ("machine.json", MACHINE),
        "dataset": ("workspace/datasets/my-dataset/recipe.json", DATASET),
        "adapter": ("workspace/adapters/my-adapter/recipe.json", ADAPTER),
    }
    name, value = files[path]
    before = (root / leaderboard.PAGE).read_text()
    lines = leaderboard.add_rows(results(name, {**value, **change}), root)
    assert len(lines) == 1 and sentence in lines[0], lines
    assert (root / leaderboard.PAGE).read_text() == before


def test_other_rows_than_the_first_runs_give_no_row(results, root):
    leaderboard.add_rows(results("x.json", {}), root)
    dataset = {**DATASET, "sha256": {"train.jsonl": "e" * 64}}
    results("workspace/datasets/my-dataset/recipe.json", dataset)
    adapter = {**ADAPTER, "data": "e" * 64}
    folder = results("workspace/adapters/my-adapter/recipe.json", adapter)
    (line, *_) = leaderboard.add_rows(folder, root)
    assert "its rows have the hash eeee" in line
    assert len(leaderboard.read(root)["rows"]) == 1


def test_page_shows_the_rows_of_the_data():
    page = (ROOT / leaderboard.PAGE).read_text(encoding="utf-8")
    assert leaderboard.with_table(page, leaderboard.read(ROOT)) == page


def test_task_is_the_courses_open_mirror():
    from colab_utils.models import choosing

    assert leaderboard.TASK["model"] == choosing.OPEN_MIRROR
