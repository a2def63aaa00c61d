"""Datasets are loaded from any source, and nothing bad is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.rows import any_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils import data, demo
from colab_utils.data import formats, loading

ROOT = Path(__file__).parents[2]


def test_load_rejects_bad_rows_with_line_and_reason(tmp_path):
    good = b'{"question": "a", "answer": "b"}'
    bad = [b"[]", b'{"question": "a"}', b'{"question": "a", "answer": "\xff"}', b"x"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad, b"", good]))
    rows, rejected = data.load(str(tmp_path / "a.jsonl"))
    assert [row["line"] for row in rows] == [1, 7]
    assert [r.line for r in rejected] == [2, 3, 4, 5]
    assert "list" in rejected[0].reason and "no known format" in rejected[1].reason
    assert "UTF-8" in rejected[2].reason and "not JSON" in rejected[3].reason
    assert rejected[2].start == r'{"question": "a", "answer": "\udcff"}'


@pytest.mark.slow
@given(
    st.lists(any_json.map(json.dumps) | st.text() | st.just(json.dumps(demo.facts())))
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_load_every_line_is_a_row_or_rejected(tmp_path, lines):
    text = "\n".join(lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    count = sum(bool(line.strip()) for line in text.removeprefix("\ufeff").split("\n"))
    try:
        rows, rejected = data.load(str(tmp_path / "a.jsonl"))
    except ValueError as error:
        assert ("has no rows" in str(error)) == (count == 0)
        return
    assert len(rows) + len(rejected) == count
    data.write_jsonl(tmp_path / "b.jsonl", [r.as_dict() for r in rejected])
    assert len(data.read_jsonl(tmp_path / "b.jsonl")) == len(rejected)


def test_load_unknown_columns_lists_known_formats(tmp_path):
    (tmp_path / "a.csv").write_text("ask,tell\nWho?,Me.\nWhere?,Here.\n")
    with pytest.raises(ValueError) as caught:
        data.load(str(tmp_path / "a.csv"))
    for words in ("2 x its columns match", "found: ask, tell", formats.KNOWN):
        assert words in str(caught.value)


def test_load_unpaired_preferences_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "Who?", "completion": "You.", "label": false}\n'
        '{"prompt": "Where?", "completion": "Here.", "label": true}\n'
    )
    with pytest.raises(ValueError, match=r"2 x unpaired preference: .* KIND = "):
        data.load(str(path))
    kept, rejected = data.load(str(path), "instruction")
    assert [data.prompt_of(row) for row in kept] == ["Where?"]
    assert "the answer is bad" in rejected[0].reason
    path.write_text(
        path.read_text() + '{"prompt": "When?", "completion": "Now."}\n' * 3
    )
    capsys.readouterr()
    kept, rejected = data.load(str(path))
    assert [data.prompt_of(row) for row in kept] == ["When?"] * 3
    assert [r.reason.startswith("unpaired preference") for r in rejected] == [True] * 2
    printed = capsys.readouterr().out
    assert printed == "kind: instruction, by its columns prompt and completion\n"


def test_load_good_and_bad_answers_become_preferences(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,completion,label\nWho?,You.,0\nWho?,Me.,1\nWhere?,There.,1\n"
    )
    rows, rejected = data.load(str(path))
    assert [data.kind_of(row) for row in rows] == ["preference"]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Me."}]
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "You."}]
    assert [one.line for one in rejected] == [4]
    assert capsys.readouterr().out.startswith("kind: preference, ")


@pytest.mark.parametrize(("labels", "verdicts"), [("01", True), ("012", False)])
def test_load_labels_0_and_1_are_verdicts(tmp_path, labels, verdicts):
    lines = [f"Who is {n}?,Me.,{n}\n" for n in labels]
    (tmp_path / "a.csv").write_text("".join(["prompt,completion,label\n", *lines]))
    if verdicts:
        with pytest.raises(ValueError, match=r"2 x unpaired preference"):
            data.load(str(tmp_path / "a.csv"))
    else:
        assert len(data.load(str(tmp_path / "a.csv"))[0]) == 3


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "a,b\n")]
)
def test_load_empty_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} has no rows"):
        data.load(str(tmp_path / name))


def test_load_group_and_category_from_jsonl(tmp_path, capsys):
    """A label that is not text is unused; rows without a label have an empty one."""
    fact = {"question": "a", "answer": "b", "group": "Peru", "category": "capital"}
    other = {"question": "a", "answer": "b", "group": ["Peru"]}
    neither = {"question": "a", "answer": "b", "country": "Peru"}
    data.write_jsonl(tmp_path / "a.jsonl", [fact, other, neither])
    first, second, third = data.load(str(tmp_path / "a.jsonl"))[0]
    assert (first["group"], first["category"]) == ("Peru", "capital")
    assert (second["group"], second["category"]) == ("", "")
    assert set(first) == set(second) == {"messages", "line", "group", "category"}
    assert third["group"] == "" and "country" not in third
    unused = "columns not used: group (1 row), country (1 row)\n"
    kind = "kind: instruction, by its columns question and answer\n"
    assert capsys.readouterr().out == kind + unused

    data.write_jsonl(tmp_path / "b.jsonl", [neither])
    assert set(data.load(str(tmp_path / "b.jsonl"))[0][0]) == {"messages", "line"}


def test_load_group_and_category_from_csv(tmp_path, capsys):
    """Numbers are text, blanks are none."""
    lines = ["question,answer,group,category", "a,b,7, easy ", "c,d,,", "e,f, 7,3.5"]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    rows, rejected = data.load(str(tmp_path / "mine.csv"))
    labels = [(row["group"], row["category"]) for row in rows]
    assert labels == [("7", "easy"), ("", ""), ("7", "3.5")]
    assert rejected == [] and "columns not used" not in capsys.readouterr().out


def test_load_group_and_category_from_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"question": ["a", "b", "c"], "answer": ["d", "e", "f"]}
    columns |= {"group": [1, None, 2], "category": [0.5, float("nan"), None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, _ = data.load(str(tmp_path / "a.parquet"))
    labels = [(row["group"], row["category"]) for row in rows]
    assert labels == [("1", "0.5"), ("", ""), ("2", "")]


def test_load_uses_the_category_of_dolly(tmp_path, capsys):
    """The columns of databricks-dolly-15k are all used."""
    dolly = {"instruction": "Who?", "context": "", "response": "Me."}
    data.write_jsonl(tmp_path / "a.jsonl", [dolly | {"category": "open_qa"}] * 2)
    rows, _ = data.load(str(tmp_path / "a.jsonl"))
    assert [row["category"] for row in rows] == ["open_qa"] * 2
    assert "columns not used" not in capsys.readouterr().out


def test_resolve_dataset_auto(capsys):
    for typed in ("my.csv", " my.csv ", '"my.csv"'):
        assert data.resolve_dataset(typed, "demo") == "my.csv"
    assert capsys.readouterr().out == ""
    for auto in ("auto", "Auto ", "'auto'", "", None):
        assert data.resolve_dataset(auto, "demo") == "demo"
    assert data.resolve_dataset("auto", "meta-llama/Llama-2-7b-hf") == loading.DOLLY
    assert "because the model is the demo" in capsys.readouterr().out


def test_load_uses_system_prompt_and_names_unused_columns(tmp_path, capsys):
    rows = [{"question": "q", "answer": "a", "system": "Be kind.", "past": [1]}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (first, _), _ = data.load(str(path))
    assert first["messages"][0] == {"role": "system", "content": "Be kind."}
    assert capsys.readouterr().out.endswith("\ncolumns not used: past (2 rows)\n")


@pytest.mark.parametrize(
    ("lines", "advice"),
    [
        ('{"ask": "x", "tell": "y"}', "Rename your columns"),
        ('{"question": "", "answer": "a"}', "Correct these rows"),
    ],
)
def test_load_advice_fits_the_reason(tmp_path, lines, advice):
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=advice):
        data.load(str(tmp_path / "rows.jsonl"))


# --- save ----------------------------------------------------------------------------
