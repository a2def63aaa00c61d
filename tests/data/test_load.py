"""Datasets are loaded from any source, and nothing bad is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data import loading
from colab_utils.data.shapes import formats, kinds


def test_load_rejects_bad_rows_with_line_and_reason(tmp_path):
    good = b'{"question": "a", "answer": "b"}'
    bad = [b"[1]", b'{"question": "a"}', b'{"question": "a", "answer": "\xff"}', b"x"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad, b"", good]))
    rows, rejected = data.load(str(tmp_path / "a.jsonl"))
    assert [row["line"] for row in rows] == [1, 7]
    assert [r.line for r in rejected] == [2, 3, 4, 5]
    assert "list" in rejected[0].reason and "no known format" in rejected[1].reason
    assert "UTF-8" in rejected[2].reason and "not JSON" in rejected[3].reason
    assert rejected[2].start == r'{"question": "a", "answer": "\udcff"}'


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


def test_load_says_how_to_name_the_columns_of_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("Who is it?,Me.\nWho was it?,You.\n")
    with pytest.raises(ValueError, match="write a line such as question,answer above"):
        data.load(str(tmp_path / "a.csv"))


def test_load_good_answers_without_bad_ones_are_instructions(tmp_path, capsys):
    """A label that is the same in all rows separates nothing."""
    good = {"question": "Who?", "answer": "Me.", "is_correct": True}
    rows, rejected = data.load(save(tmp_path / "a.jsonl", good, good))
    assert [data.kind_of(row) for row in rows] == ["instruction"] * 2
    assert rejected == [] and "columns not used" not in capsys.readouterr().out
    bad = {"question": "You?", "answer": "Me.", "is_correct": False}
    with pytest.raises(ValueError, match="unpaired preference"):
        data.load(save(tmp_path / "b.jsonl", good, bad))
    rows, rejected = data.load(str(tmp_path / "b.jsonl"), "instruction")
    assert [data.prompt_of(row) for row in rows] == ["Who?"]
    assert [one.reason for one in rejected] == [kinds.BAD_ANSWER]


def test_load_labels_next_to_messages_make_pairs(tmp_path):
    user, me, you = (
        {"role": role, "content": text}
        for role, text in (("user", "Who?"), ("assistant", "Me."), ("assistant", "You"))
    )
    raws = [
        {"messages": [user, you], "label": "bad"},
        {"messages": [user, me], "label": "good"},
    ]
    ((row,), rejected) = data.load(save(tmp_path / "a.jsonl", *raws))
    assert (row["chosen"], row["rejected"], rejected) == ([me], [you], [])


def test_load_names_a_label_next_to_answers_that_is_no_verdict(tmp_path, capsys):
    data.load(save(tmp_path / "a.jsonl", {**QUESTION, "label": "x"}, QUESTION))
    assert capsys.readouterr().out.endswith("\ncolumns not used: label (1 row)\n")


def test_load_warns_of_labels_that_are_hardly_classes(tmp_path, capsys):
    rows = [{"text": f"film {n}", "rating": n / 8} for n in range(20)]
    data.load(save(tmp_path / "a.jsonl", *rows))
    assert "labels: 20 different ones in 20 rows" in capsys.readouterr().out
    data.load(save(tmp_path / "b.jsonl", *(row | {"rating": 3} for row in rows)))
    assert "different ones" not in capsys.readouterr().out


# --- kinds ---------------------------------------------------------------------------

QUESTION = {"question": "Who?", "answer": "Me."}
PREFERENCE = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
LABELED = {"text": "A good film", "label": 1}


def save(path: Path, *rows: object) -> str:
    data.write_jsonl(path, list(rows))
    return str(path)


def test_load_takes_the_kind_of_most_rows(tmp_path, capsys):
    """The first row does not decide; rows of other kinds are rejected by name."""
    path = save(tmp_path / "a.jsonl", LABELED, QUESTION, PREFERENCE, PREFERENCE)
    rows, rejected = data.load(path)
    assert [data.kind_of(row) for row in rows] == ["preference"] * 2
    assert [(one.line, one.reason) for one in rejected] == [
        (1, "a row of the kind classification in a dataset of the kind preference"),
        (2, "a row of the kind instruction in a dataset of the kind preference"),
    ]
    printed = capsys.readouterr().out
    assert printed == "kind: preference, by its columns chosen and rejected\n"


def test_load_makes_the_kind_that_the_reader_asks_for(tmp_path, capsys):
    text = {"text": "one two three four five"}
    path = save(tmp_path / "a.jsonl", PREFERENCE, QUESTION, LABELED, text)
    rows, rejected = data.load(path, "instruction")
    assert [data.answer_of(row) for row in rows] == ["Me.", "Me.", "1"]
    assert [one.line for one in rejected] == [4]
    assert "can't become one of the kind instruction" in rejected[0].reason
    printed = capsys.readouterr().out
    assert "kind: instruction, made from preference (by its columns chosen" in printed
    assert "(1 row); by its columns question and answer (1 row)" in printed
    rows, rejected = data.load(path, "fill-in-the-middle")
    assert [row["line"] for row in rows] == [4] and len(rejected) == 3


def test_load_unknown_kind(tmp_path):
    path = save(tmp_path / "a.jsonl", QUESTION)
    with pytest.raises(
        ValueError, match="KIND = 'fim', but it must be one of 'auto', "
    ):
        data.load(path, "fim")


def test_load_prints_repairs_and_keys_that_are_not_used(tmp_path, capsys):
    user, answer = ({"role": r, "content": r} for r in ("user", "assistant"))
    one = {"messages": [user, answer, user], "url": "x"}
    two = {"messages": [answer, {**user, "mood": "x"}, answer]}
    data.load(save(tmp_path / "a.jsonl", one, one, two))
    assert capsys.readouterr().out.splitlines() == [
        "kind: instruction, by its column messages",
        "repaired: a question after the last answer removed (2 rows), "
        "an answer before the first question removed (1 row)",
        "not used in messages: mood (1 row)",
        "columns not used: url (2 rows)",
    ]


def test_load_names_images(tmp_path):
    path = save(tmp_path / "a.jsonl", {**QUESTION, "image": "x.png"})
    with pytest.raises(ValueError, match=r"1 x images and sound .* Remove the column"):
        data.load(path)


@pytest.mark.slow
@given(st.lists(st.integers(0, 2**30), max_size=12), st.integers(0, 12))
@settings(
    deadline=None,
    max_examples=3 * settings.default.max_examples // 5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_load_loses_no_good_row_among_damaged_ones(tmp_path, seeds, at):
    lines = [json.dumps(shapes.damaged(seed)) for seed in seeds]
    lines.insert(min(at, len(lines)), json.dumps(QUESTION))
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows, rejected = data.load(str(tmp_path / "a.jsonl"), "instruction")
    found = {row["line"] for row in rows} | {one.line for one in rejected}
    assert found == set(range(1, len(lines) + 1))
    assert min(at, len(seeds)) + 1 in [row["line"] for row in rows]
    data.write_jsonl(tmp_path / "b.jsonl", [one.as_dict() for one in rejected])
    assert len(data.read_jsonl(tmp_path / "b.jsonl")) == len(rejected)


def test_parts_of_a_dataset_add_up():
    """What a stream does with parts gives what `load` does with the whole."""
    raws = [PREFERENCE, LABELED, *[QUESTION | {"id": 1}] * 3]
    whole = loading.convert(enumerate(raws, start=1), "auto")
    parts = [loading.convert([(n, raw)], "auto") for n, raw in enumerate(raws, start=1)]
    tally = sum((part.tally for part in parts), start=formats.Tally())
    assert tally == whole.tally
    decision = kinds.decide(tally.found, "auto")
    kept = [r for part in parts for r in loading.settle(part, decision)[0]]
    assert kept == loading.settle(whole, decision)[0] and len(kept) == 3


@pytest.mark.parametrize("column", ["text", "content"])
def test_load_refuses_one_message_a_row(tmp_path, capsys, column):
    path = tmp_path / "tree.jsonl"
    roles = ("prompter", "assistant") * 5
    rows = [
        {"message_id": n, "role": role, column: f"Words {n}."}
        for n, role in enumerate(roles)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="Put all messages of a conversation into one"):
        data.load(str(path))
    assert len(data.load(str(path), "completion")[0]) == 10


TARGETS = [("Fine.", "1"), ("Bad.", "0"), ("Good.", "1"), ("", "0"), ("Poor.", "0")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("column", ["target", "Target", "label"])
def test_load_few_whole_numbers_in_quotes_are_classes(tmp_path, suffix, column):
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        lines = [f"text,{column}", *map(",".join, TARGETS)]
    else:
        lines = [json.dumps({"text": text, column: n}) for text, n in TARGETS]
    path.write_text("\n".join(lines))
    rows, rejected = data.load(str(path))
    assert [(row["text"], row["label"]) for row in rows] == [
        (text, number) for text, number in TARGETS if text
    ]
    assert len(rejected) == 1


@pytest.mark.parametrize(
    "targets",
    [
        ["1", "0", "1", "a"],  # a text among the numbers
        ["1", "2", "3", "4"],  # each row has another number
        ["01", "01", "02", "02"],  # a number would lose its zeros
        ["1.5", "1.5", "2", "2"],
    ],
)
def test_load_other_texts_in_target_are_answers(tmp_path, targets):
    lines = [f"How many {i}?,{target}" for i, target in enumerate(targets)]
    (tmp_path / "a.csv").write_text("\n".join(["text,target", *lines]))
    rows, _ = data.load(str(tmp_path / "a.csv"))
    assert [data.answer_of(row) for row in rows] == targets
    assert {data.kind_of(row) for row in rows} == {"instruction"}


@pytest.mark.parametrize("column", ["question", "text"])
def test_load_number_of_an_option_in_target_is_an_answer(tmp_path, column):
    rows = [
        {column: f"{i}?", "choices": ["no", "yes"], "target": f"{i % 2}"}
        for i in range(4)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded, _ = data.load(str(tmp_path / "a.jsonl"))
    assert {data.kind_of(row) for row in loaded} == {"instruction"}


def test_load_classes_of_many_rows_are_those_of_the_first(tmp_path):
    lines = [f"Text {i}.,{i % 3}" for i in range(2000)]
    (tmp_path / "a.csv").write_text("\n".join(["text,target", *lines, "Last.,7"]))
    rows, rejected = data.load(str(tmp_path / "a.csv"))
    assert {row["label"] for row in rows} == {"0", "1", "2", "7"}
    assert len(rows) == 2001 and not rejected
