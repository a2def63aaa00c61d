"""Rows of every known shape become one schema; datasets are saved whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from colab_utils import demo
from colab_utils import recipe as recipes
from colab_utils.data import dataset as data
from colab_utils.data.readers import Rejected
from colab_utils.workspace import Workspace

ASKED = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
USER, ASSISTANT = ASKED

# --- shapes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": ASKED}, ASKED),
        ({"messages": [SYSTEM, *ASKED, *ASKED]}, [SYSTEM, *ASKED, *ASKED]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Who?"},
                    {"from": "gpt", "value": "Me."},
                ]
            },
            [SYSTEM, *ASKED],
        ),
        ({"prompt": "Who?", "completion": "Me."}, ASKED),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, *ASKED]),
        ({"instruction": "Who?", "output": "Me."}, ASKED),
        ({"instruction": " Who?\n", "input": "", "output": "Me. "}, ASKED),
        ({"instruction": "Who?", "context": None, "response": "Me."}, ASKED),
        ({"question": "Who?", "answer": "Me.", "id": 7, "context": " "}, ASKED),
        ({"question": "Who?", "answer": "Me.", "context": float("nan")}, ASKED),
    ],
)
def test_every_shape(row, expected):
    assert data.to_messages(row) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, "context": "Here."},
        {"prompt": [USER], "completion": [ASSISTANT], "context": "Here."},
        {"prompt": "Who?", "completion": "Me.", "context": "Here."},
        {"instruction": "Who?", "input": "Here.", "output": "Me."},
        {"question": "Who?", "answer": "Me.", "context": "Here."},
    ],
)
def test_a_context_goes_under_the_first_prompt(row):
    before = json.dumps(row)
    user, assistant = data.to_messages(row)
    assert (user["content"], assistant["content"]) == ("Who?\n\nHere.", "Me.")
    assert json.dumps(row) == before


def test_numbers_are_text():
    row = {"instruction": "Double it", "input": 0, "output": 0.5}
    user, assistant = data.to_messages(row)
    assert (user["content"], assistant["content"]) == ("Double it\n\n0", "0.5")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["Who?", "Me."], "not an object with columns, but list"),
        ({"text": "Me."}, "its columns fit no known shape"),
        ({"question": "Who?"}, "its columns fit no known shape"),
        ({"question": " ", "answer": "Me."}, "question is empty"),
        ({"question": "Who?", "answer": None}, "answer is empty"),
        ({"question": "Who?", "answer": float("nan")}, "answer is empty"),
        ({"question": "Who?", "answer": True}, "answer is not text, but bool"),
        ({"question": "Who?", "answer": ["Me."]}, "answer is not text, but list"),
        ({"question": "Who?", "answer": "\udcff"}, "answer is not valid UTF-8"),
        (
            {"question": "Who?", "answer": "Me.", "context": {}},
            "context is not text, but dict",
        ),
        ({"messages": "Who?"}, "a conversation must be a list of messages"),
        ({"messages": ["Who?"]}, "a conversation must be a list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role tool"),
        ({"messages": [{"content": "x"}]}, "role is empty"),
        ({"messages": [{"role": "user"}]}, "user message is empty"),
        ({"messages": []}, "turns must alternate"),
        ({"messages": [SYSTEM]}, "turns must alternate"),
        ({"messages": [*ASKED, USER]}, "turns must alternate"),
        ({"messages": [ASSISTANT, USER]}, "turns must alternate"),
        ({"prompt": [USER], "completion": "Me."}, "a conversation must be a list"),
    ],
)
def test_why_a_row_cannot_be_used(row, reason):
    with pytest.raises(data.BadRow) as caught:
        data.to_messages(row)
    assert str(caught.value).startswith(reason)


COLUMNS = [
    *("messages", "conversations", "prompt", "completion", "instruction", "input"),
    *("output", "response", "question", "answer", "context"),
]
WORDS = ["user", "assistant", "system", "human", "gpt", "Who?", " ", "\ud800"]
leaves = st.none() | st.booleans() | st.integers() | st.floats()
leaves |= st.text() | st.sampled_from(WORDS)
any_json = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
turn = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value"]),
    st.sampled_from(WORDS) | any_json,
)
cell = st.sampled_from(WORDS) | st.lists(turn, max_size=5) | any_json
any_row = st.dictionaries(st.sampled_from(COLUMNS), cell, max_size=6) | any_json


@given(any_row)
@example({"messages": [{"role": "\x1b"}]})
@settings(deadline=None, max_examples=400)
def test_any_row_becomes_messages_or_a_reason(row):
    try:
        messages = data.to_messages(row)
    except data.BadRow as error:
        assert str(error).isprintable()
        return
    said = [turn["content"] for turn in messages]
    assert messages[-1]["role"] == "assistant" and all(text.strip() for text in said)
    assert json.dumps(messages, ensure_ascii=False).encode()
    assert data.to_messages({"messages": messages}) == messages


def test_parts_of_a_row():
    row = {"messages": [SYSTEM, *ASKED, {**USER, "content": "Why?"}, ASSISTANT]}
    assert data.prompt_of(row) == "Who?\nMe.\nWhy?"
    assert data.answer_of(row) == "Me."
    long = {"messages": [USER, {**ASSISTANT, "content": "x" * 31}]}
    assert data.short_answers([row] * 19 + [long])
    assert not data.short_answers([row] * 18 + [long])


# --- loading -------------------------------------------------------------------------


def test_a_bad_row_is_set_aside_with_its_line_and_reason(tmp_path):
    good = b'{"question": "a", "answer": "b"}'
    bad = [b"[]", b'{"question": "a"}', b'{"question": "a", "answer": "\xff"}', b"x"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad, b"", good]))
    rows, rejected = data.load(str(tmp_path / "a.jsonl"))
    assert [row["line"] for row in rows] == [1, 7]
    assert [r.line for r in rejected] == [2, 3, 4, 5]
    assert "list" in rejected[0].reason and "no known shape" in rejected[1].reason
    assert "UTF-8" in rejected[2].reason and "not JSON" in rejected[3].reason
    assert rejected[2].start == r'{"question": "a", "answer": "\udcff"}'


@given(
    st.lists(any_json.map(json.dumps) | st.text() | st.just(json.dumps(demo.facts())))
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_a_row_or_rejected(tmp_path, lines):
    text = "\n".join(lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    count = sum(bool(line.strip()) for line in text.removeprefix("\ufeff").split("\n"))
    try:
        rows, rejected = data.load(str(tmp_path / "a.jsonl"))
    except ValueError as error:
        assert ("holds no rows" in str(error)) == (count == 0)
        return
    assert len(rows) + len(rejected) == count
    data.write_jsonl(tmp_path / "b.jsonl", [r.as_dict() for r in rejected])
    assert len(data.read_jsonl(tmp_path / "b.jsonl")) == len(rejected)


def test_unknown_columns_are_named_with_the_known_shapes(tmp_path):
    (tmp_path / "a.csv").write_text("ask,tell\nWho?,Me.\nWhere?,Here.\n")
    with pytest.raises(ValueError) as caught:
        data.load(str(tmp_path / "a.csv"))
    for words in ("2 x its columns fit", "found: ask, tell", *data.SHAPES, "context"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "a,b\n")]
)
def test_an_empty_file_holds_no_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} holds no rows"):
        data.load(str(tmp_path / name))


def test_only_the_demos_rows_know_a_country(tmp_path):
    fact = {"question": "a", "answer": "b", "country": "Peru", "attribute": "capital"}
    other = {"question": "a", "answer": "b", "country": ["Peru"]}
    data.write_jsonl(tmp_path / "a.jsonl", [fact, other])
    first, second = data.load(str(tmp_path / "a.jsonl"))[0]
    assert (first["country"], first["attribute"]) == ("Peru", "capital")
    assert set(second) == {"messages", "line"}


def test_which_dataset_auto_is(capsys):
    assert data.choose("my.csv", "demo") == "my.csv"
    assert capsys.readouterr().out == ""
    assert data.choose("auto", "demo") == "demo"
    assert data.choose("auto", "meta-llama/Llama-2-7b-hf") == data.DOLLY
    assert "because the model is the demo" in capsys.readouterr().out


# --- saving --------------------------------------------------------------------------

ROW = {"messages": ASKED, "line": 1}
BAD = Rejected(3, "answer is empty", "{}")


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_from_a_file_as_they_were(tmp_path, rows):
    data.write_jsonl(tmp_path / "a.jsonl", rows)
    assert data.read_jsonl(tmp_path / "a.jsonl") == rows


def test_a_file_broken_by_hand_is_named_with_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: Expecting"):
        data.read_jsonl(tmp_path / "a.jsonl")


def test_save_and_read_again(headless, tmp_path, capsys):
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
    assert recipes.read(folder) == made
    assert (made["kind"], made["name"], made["metric"]) == ("dataset", "mine", "loss")
    names = {"source": tmp_path / "mine.csv", "train.jsonl": folder / "train.jsonl"}
    for name, path in names.items():
        assert made["sha256"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "replacing" not in capsys.readouterr().out

    data.save(folder, {"train": [ROW]}, [], "Again.")
    assert "replacing the older dataset mine" in capsys.readouterr().out
    assert sorted(p.name for p in folder.parent.iterdir()) == ["mine"]
    assert not (folder / "test.jsonl").exists()


def test_what_is_saved_is_a_dataset_that_others_can_load(tmp_path):
    import datasets

    rows = [data.to_row(row, n) for n, row in enumerate(demo.questions()[:9])]
    invented = [data.to_row(row, n) for n, row in enumerate(demo.questions(True)[:3])]
    files = {"train": rows[:6], "test": rows[6:], "invented": invented}
    data.save(tmp_path / "mine", files, [BAD], "A dataset.")
    loaded = datasets.load_dataset(
        str(tmp_path / "mine"), cache_dir=str(tmp_path / "c")
    )
    assert {name: part.to_list() for name, part in loaded.items()} == files


def test_nothing_empty_is_saved(tmp_path):
    with pytest.raises(ValueError, match="test has no rows"):
        data.save(tmp_path / "a", {"train": [ROW], "test": []}, [], "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "notes"])
def test_only_a_dataset_is_replaced(tmp_path, name):
    datasets = tmp_path / "datasets"
    data.save(datasets / "mine", {"train": [ROW]}, [], "")
    (datasets / "notes").mkdir()
    (datasets / "notes" / "recipe.json").write_text("{}")
    before = sorted(datasets.rglob("*"))
    with pytest.raises(FileExistsError, match="is no dataset that was saved here"):
        data.save(datasets / name, {"train": [ROW]}, [], "")
    assert sorted(datasets.rglob("*")) == before


# Saves a new dataset over an old one, and is killed at its n-th touch of the disk, for
# every n; prints what a reader finds then, and after the next save.
KILLED = """
import itertools, os, shutil, sys
from pathlib import Path
from colab_utils.data import dataset as data
from colab_utils import recipe as recipes
from colab_utils.hub.cards import address

folder = Path("datasets/mine")
rows = {name: [{"name": name}] for name in ("old", "new", "next")}
recipes.versions(), address()
TOUCHES = "open os.rename os.remove os.mkdir os.rmdir".split()

def found(folder):
    if not folder.exists():
        return "none"
    name = recipes.read(folder)["source"]
    assert data.read(folder, "train") == rows[name] and (folder / "README.md").exists()
    return name

def save(name):
    data.save(folder, {"train": rows[name]}, [], "", source=name)

for n in itertools.count(1):
    shutil.rmtree("datasets", ignore_errors=True)
    save("old")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        left = [n]
        def touch(event, _):
            if event in TOUCHES:
                left[0] -= 1
                if not left[0]:
                    os._exit(9)
        sys.addaudithook(touch)
        save("new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    state = found(folder)
    if state == "none":
        assert found(Path("datasets/.mine.old")) == "old"
        assert found(Path("datasets/.mine.part")) == "new"
    save("next")
    assert found(folder) == "next" and os.listdir("datasets") == ["mine"]
    print("state:", state)
    if code == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_killed_save_leaves_the_old_dataset_or_the_new(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = [s for s in result.stdout.splitlines() if s.startswith("state: ")]
    states = [line.removeprefix("state: ") for line in lines]
    assert len(states) > 15 and states[-1] == "new"
    # Only between two renames it is under another name, where the next save finds it.
    order = ["old"] * states.count("old") + ["none"] + ["new"] * states.count("new")
    assert states == order


# --- what an attack found -------------------------------------------------------------


def test_a_file_that_was_put_beside_a_dataset_is_never_deleted(tmp_path):
    folder = tmp_path / "datasets" / "mine"
    data.save(folder, {"train": [ROW]}, [], "")
    (folder / "my_notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds my_notes\.txt, which was not"):
        data.save(folder, {"train": [ROW]}, [], "")
    assert (folder / "my_notes.txt").read_text() == "mine"
    (folder / "my_notes.txt").unlink()
    data.save(folder, {"train": [ROW]}, [], "")


def test_a_dataset_that_names_no_training_file_is_not_replaced(tmp_path):
    (tmp_path / "recipe.json").write_text('{"kind": "dataset"}')
    with pytest.raises(FileExistsError, match="is no dataset that was saved here"):
        data.save(tmp_path, {"train": [ROW]}, [], "")


def test_a_system_prompt_is_used_and_other_columns_are_named(tmp_path, capsys):
    rows = [{"question": "q", "answer": "a", "system": "Be kind.", "history": []}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (first, _), _ = data.load(str(path))
    assert first["messages"][0] == {"role": "system", "content": "Be kind."}
    assert capsys.readouterr().out == "columns not used: history (2 rows)\n"


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": "", "response": "a"},
        {"messages": None, "question": "q", "answer": "a"},
        {"prompt": None, "completion": None, "question": "q", "answer": "a"},
        {"messages": [{"role": None, "from": "human", "content": None, "value": "q"}]},
    ],
)
def test_empty_columns_do_not_hide_full_ones(row):
    if row.get("messages"):
        row["messages"].append({"role": "assistant", "content": "a"})
    said = [turn["content"] for turn in data.to_messages(row)]
    assert said == ["q", "a"]


def test_infinity_is_no_answer():
    with pytest.raises(data.BadRow, match="answer is empty"):
        data.to_messages({"question": "q", "answer": float("inf")})


@pytest.mark.parametrize(
    ("lines", "advice"),
    [
        ('{"q": "x", "a": "y"}', "Rename your columns"),
        ('[\n {"question": "q",\n "answer": "a"}\n]', r"name it \.json"),
        ('{"question": "", "answer": "a"}', "Correct these rows"),
    ],
)
def test_the_advice_fits_the_reason(tmp_path, lines, advice):
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=advice):
        data.load(str(tmp_path / "rows.jsonl"))
