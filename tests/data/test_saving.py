"""A saved dataset is read as it was, and a crash at any moment leaves it whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.rows import DIALOG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils import data, demo, recipe
from colab_utils.data.schema import Rejected
from colab_utils.workspace import Workspace

ROOT = Path(__file__).parents[2]


ROW = {"messages": DIALOG, "line": 1}
BAD = Rejected(3, "answer is empty", "{}")


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_write_jsonl_read_jsonl_round_trip(tmp_path, rows):
    data.write_jsonl(tmp_path / "a.jsonl", rows)
    assert data.read_jsonl(tmp_path / "a.jsonl") == rows


def test_read_jsonl_names_broken_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: Expecting"):
        data.read_jsonl(tmp_path / "a.jsonl")


def test_save_then_read(headless, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("question,answer\n")
    folder = Workspace.open().folder / "datasets" / "mine"
    files = {"train": [ROW, ROW], "test": [ROW]}
    source = str(tmp_path / "mine.csv")
    made = data.save(
        folder, files, [BAD], "Made by hand.", source=source, metric="loss"
    )
    assert Workspace.open().find("datasets", "mine") == folder
    assert sorted(p.name for p in folder.parent.iterdir()) == ["mine"]
    assert data.read(folder, "train") == [ROW, ROW]
    assert data.read(folder, "rejected") == [BAD.as_dict()]
    assert recipe.read(folder) == made
    assert (made["kind"], made["name"], made["metric"]) == ("dataset", "mine", "loss")
    names = {"source": tmp_path / "mine.csv", "train.jsonl": folder / "train.jsonl"}
    for name, path in names.items():
        assert made["sha256"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "replacing" not in capsys.readouterr().out

    data.save(folder, {"train": [ROW]}, [], "Again.")
    assert "replacing the older dataset mine" in capsys.readouterr().out
    assert sorted(p.name for p in folder.parent.iterdir()) == ["mine"]
    assert not (folder / "test.jsonl").exists()


def test_save_can_be_loaded_by_datasets(tmp_path):
    import datasets

    rows = [data.to_row(row, n) for n, row in enumerate(demo.questions()[:9])]
    invented = [data.to_row(row, n) for n, row in enumerate(demo.questions(True)[:3])]
    files = {"train": rows[:6], "test": rows[6:], "invented": invented}
    data.save(tmp_path / "mine", files, [BAD], "A dataset.")
    loaded = datasets.load_dataset(
        str(tmp_path / "mine"), cache_dir=str(tmp_path / "c")
    )
    assert {name: part.to_list() for name, part in loaded.items()} == files


def test_save_refuses_empty_file(tmp_path):
    with pytest.raises(ValueError, match="test has no rows"):
        data.save(tmp_path / "a", {"train": [ROW], "test": []}, [], "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "notes"])
def test_save_replaces_only_a_dataset(tmp_path, name):
    datasets = tmp_path / "datasets"
    data.save(datasets / "mine", {"train": [ROW]}, [], "")
    (datasets / "notes").mkdir()
    (datasets / "notes" / "recipe.json").write_text("{}")
    before = sorted(datasets.rglob("*"))
    with pytest.raises(FileExistsError, match="something that was not written by"):
        data.save(datasets / name, {"train": [ROW]}, [], "")
    assert sorted(datasets.rglob("*")) == before


def test_save_keeps_a_users_file_in_the_folder(tmp_path):
    folder = tmp_path / "datasets" / "mine"
    data.save(folder, {"train": [ROW]}, [], "")
    (folder / "my_notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds my_notes\.txt, which was not"):
        data.save(folder, {"train": [ROW]}, [], "")
    assert (folder / "my_notes.txt").read_text() == "mine"
    (folder / "my_notes.txt").unlink()
    data.save(folder, {"train": [ROW]}, [], "")


def test_save_refuses_recipe_without_training_file(tmp_path):
    (tmp_path / "recipe.json").write_text('{"kind": "dataset"}')
    with pytest.raises(FileExistsError, match="something that was not written by"):
        data.save(tmp_path, {"train": [ROW]}, [], "")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("kind", ["dataset", "adapter"])
def test_save_killed_leaves_old_or_new(tmp_path, kind):
    """For a dataset, and for an adapter with files of the reader in its folder."""
    result = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/kill_during_save.py", kind],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = [s for s in result.stdout.splitlines() if s.startswith("state: ")]
    states = [line.removeprefix("state: ") for line in lines]
    assert len(states) > 15 and states[-1] == "new"
    # "none" is the moment between two renames: the old dataset has a temporary name,
    # where the next save finds it.
    order = ["old"] * states.count("old") + ["none"] + ["new"] * states.count("new")
    assert states == order
