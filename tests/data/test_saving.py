"""A saved dataset is read as it was, and a crash at any moment leaves it whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.rows import ASSISTANT, DIALOG, USER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils import data, demo, recipe
from colab_utils.data import saving
from colab_utils.data.schema import Rejected
from colab_utils.hub import cards
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


@given(st.dictionaries(st.text('aé\\u0\x7f\n"\u2028😀'), st.text("aé\\u0\x7f\n\t")))
@settings(deadline=None, max_examples=3 * settings.default.max_examples // 2)
def test_to_line_writes_no_escapes_that_json_does_not_need(row):
    assert saving.to_line(row) == json.dumps(row, ensure_ascii=False) + "\n"


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
    assert data.read(str(folder), "train") == [ROW, ROW]
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


def test_save_counts_what_cards_and_summaries_read(headless, tmp_path):
    """A dataset that gave other counts stopped 02 at its end, when it wrote a card."""
    files = {"train": [ROW, ROW], "test": [ROW]}
    given = {"in": 9, "kept": 2}
    made = data.save(tmp_path / "a", files, [BAD], "A card.", source="demo", rows=given)
    counts = {"in": 9, "kept": 2, "rejected": 1, "train": 2, "test": 1}
    assert made["rows"] == recipe.read(tmp_path / "a")["rows"] == counts
    bare = data.save(tmp_path / "b", files, [BAD], "A card.", source="demo")
    assert bare["rows"] == counts | {"in": 4, "kept": 3}
    trained = cards.Trained("adapter", "demo", "qlora", {"loss": {"base": 2.0}})
    assert "1 held-out" in cards.card_text(trained, "mine", made)


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


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"properties": {"a": {"enum": [1, "b"]}}},
    },
}


def tool_row(line: int, arguments: object) -> data.Row:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "weight": 0, "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    return {"messages": turns, "tools": [TOOL], "line": line}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(json_values)
@settings(deadline=None)
def test_to_text_from_text_round_trip(value):
    row = tool_row(1, value) | {"tools": [value]}
    stored = saving.to_text(row)
    assert isinstance(stored["tools"], str)
    call = stored["messages"][1]["tool_calls"][0]["function"]
    assert isinstance(call["arguments"], str)
    assert saving.from_text(stored) == row
    pair = {"prompt": [USER], "chosen": row["messages"], "rejected": DIALOG, "line": 2}
    assert saving.from_text(saving.to_text(pair)) == pair
    assert saving.to_text(ROW) is ROW


@pytest.mark.slow
def test_tools_in_late_rows_can_be_loaded_by_datasets(tmp_path):
    """`datasets` takes the columns from the first 10 MB; these have no tools."""
    import datasets

    plain = [{"messages": [USER, {**ASSISTANT, "content": "x" * 4000}], "line": 1}]
    rows = plain * 3000 + [tool_row(3, {"a": 1}), tool_row(4, {"a": "b", "c": [None]})]
    data.save(tmp_path / "mine", {"train": rows}, [], "")
    assert data.read(tmp_path / "mine", "train") == rows
    path, cache = str(tmp_path / "mine"), str(tmp_path / "cache")
    loaded = datasets.load_dataset(path, cache_dir=cache, split="train")
    assert len(loaded) == 3002 and loaded[0]["tools"] is None
    last = loaded[3001]
    assert json.loads(last["tools"]) == [TOOL]
    function = last["messages"][1]["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"a": "b", "c": [None]}
    assert last["messages"][1]["weight"] == 0

    few = str(tmp_path / "few.jsonl")
    data.write_jsonl(Path(few), map(saving.to_text, [plain[0], *rows[-2:]]))
    alone = datasets.load_dataset("json", data_files=few, cache_dir=cache)["train"]
    assert [bool(row["tools"]) for row in alone] == [False, True, True]


ROWS_OF_KINDS = {
    "instruction": ROW,
    "completion": {"text": "a", "line": 1},
    "preference": {
        "prompt": [USER],
        "chosen": [ASSISTANT],
        "rejected": [ASSISTANT],
        "line": 1,
    },
    "classification": {"text": "a", "label": "b", "line": 1},
    "fill-in-the-middle": {"prefix": "a", "middle": "b", "suffix": "c", "line": 1},
}


@pytest.mark.parametrize("kind", ROWS_OF_KINDS)
def test_check_kind(tmp_path, kind):
    import datasets

    folder, row = tmp_path / "mine", ROWS_OF_KINDS[kind]
    made = data.save(folder, {"train": [row]}, [], "")
    assert made["row_kind"] == kind
    data.check_kind(folder, kind)
    for other in set(ROWS_OF_KINDS) - {kind}:
        says = f"mine has {kind} rows, but this notebook needs {other} rows"
        with pytest.raises(ValueError, match=says):
            data.check_kind(folder, other)
    # Older recipes do not name the kind.
    del made["row_kind"]
    (folder / "recipe.json").write_text(json.dumps(made))
    data.check_kind(folder, kind)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(folder), cache_dir=cache, split="train")
    assert loaded.to_list() == [row]


def test_check_kind_names_the_notebook(tmp_path):
    data.save(tmp_path / "mine", {"train": [ROW]}, [], "")
    with pytest.raises(
        ValueError, match="02_finetune_qlora trains on instruction rows"
    ):
        data.check_kind(tmp_path / "mine", "preference")
    pairs = {"train": [ROWS_OF_KINDS["preference"]]}
    data.save(tmp_path / "pairs", pairs, [], "")
    with pytest.raises(ValueError, match="09_preferences trains on preference rows"):
        data.check_kind(tmp_path / "pairs", "instruction")


def test_save_refuses_rows_of_two_kinds(tmp_path):
    rows = [ROW, ROWS_OF_KINDS["completion"]]
    with pytest.raises(ValueError, match=r"test has a completion row \(line 1\)"):
        data.save(tmp_path / "mine", {"train": [ROW], "test": rows}, [], "")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_dataset(tmp_path, monkeypatch):
    folder = tmp_path / "saved" / "mine"
    data.save(folder, {"train": [ROW]}, [], "")

    def write(path, rows):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_jsonl", write)
    with pytest.raises(
        OSError, match=r"The disk is full: .*mine was not saved, .* GiB"
    ):
        data.save(folder, {"train": [ROW, ROW]}, [], "")
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert data.read(folder, "train") == [ROW]


def test_save_writes_the_same_bytes_again(tmp_path):
    files = {"train": [ROW, tool_row(2, {"b": 1, "a": 2})], "test": [ROW] * 9}
    for name in "ab":
        data.save(tmp_path / name / "mine", files, [BAD] * 3, "Text.", source="demo")
    for path in (tmp_path / "a" / "mine").iterdir():
        if path.name != "recipe.json":
            assert path.read_bytes() == (tmp_path / "b/mine" / path.name).read_bytes()
