"""The kind of a row is recognized by its columns, however they are named."""

from __future__ import annotations

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER

from colab_utils import data
from colab_utils.data import schema
from colab_utils.data.shapes import column_names, columns, formats


def kind_and_by(raw: dict) -> tuple[str, str]:
    reader = formats.RowReader()
    row, _ = reader.read(raw, 1)
    (way,) = reader.tally().by
    assert schema.kind_of(row) == way[0]
    return way


@pytest.mark.parametrize(
    "row",
    [
        {"system_prompt": "Be brief.", "question": "Who?", "response": "Me."},
        {"System Prompt": "Be brief.", "Question": "Who?", "Answer": "Me."},
        {"system": "Be brief.", "user": "Who?", "assistant": "Me."},
        {"SYSTEM": "Be brief.", "Query": "Who?", "TARGET": "Me."},
        {"system": "Be brief.", "input": "Who?", "output": "Me."},
        {"system": "Be brief.", "source": "Who?", "target": "Me."},
        {"system": "Be brief.", "problem": "Who?", "solution": "Me."},
        {"system": "Be brief.", "instruction": "", "input": "Who?", "output": "Me."},
        {"system": "Be brief.", "messages": DIALOG},
        {"system": "Be brief.", "conversation": [{"user": "Who?", "assistant": "Me."}]},
        {"system": "Be brief.", "conversations": ["Who?", "Me."]},
        {
            "system": "Be brief.",
            "dialog": {"role": ["user", "assistant"]} | {"content": ["Who?", "Me."]},
        },
        {"system": "Be brief.", "prompt": [USER], "response": "Me."},
        {"system": "Be brief.", "prompt": "Who?", "completion": [ASSISTANT]},
        {"system": "Be brief.", "question": "Who?", "answers": {"text": ["Me.", "I"]}},
        {"system": "Be brief.", "Answer": "Me.", "answer": " ", "question": "Who?"},
        {"system": "Be brief.", "text": "Who?", "summary": "Me."},
    ],
)
def test_any_prompt_goes_with_any_answer(row):
    assert data.to_messages(row) == [SYSTEM, *DIALOG]


@pytest.mark.parametrize(
    ("row", "kind", "by"),
    [
        (
            {"Question": "a", "Answer": "b"},
            "instruction",
            "columns Question and Answer",
        ),
        ({"messages": DIALOG, "source": "x"}, "instruction", "column messages"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "messages": DIALOG},
            "preference",
            "columns chosen and rejected",
        ),
        (
            {"prefix": "", "middle": "b", "suffix": "c", "content": "x"},
            "fill-in-the-middle",
            "columns prefix, middle and suffix",
        ),
        ({"sentence": "a", "label": 0}, "classification", "columns sentence and label"),
        ({"review": "a", "Sentiment": "b"}, "classification", "review and Sentiment"),
        ({"text": "a", "target": 1}, "classification", "columns text and target"),
        ({"text": "a", "label": 1, "label_text": "x"}, "classification", "label_text"),
        ({"content": "a", "path": "x"}, "completion", "by its column content"),
        ({"text": "a", "summary": ""}, "completion", "by its column text"),
        (
            {"text": "<s>[INST] a [/INST] b</s>"},
            "instruction",
            "column text, cut at the marks [INST]",
        ),
    ],
)
def test_kind_is_recognized_and_named(row, kind, by):
    found = kind_and_by(row)
    assert found[0] == kind and found[1].endswith(by)


def test_labels_become_text():
    labels = {1: "1", 2.0: "2", -2.5: "-2.5", "x ": "x"}
    for raw, text in labels.items():
        assert data.to_row({"text": "a", "label": raw}, 1)["label"] == text
    assert data.to_row({"text": "a", "label": True}, 1)["label"] == "true"
    assert data.to_row({"text": "a", "labels": ["x"]}, 1)["label"] == "x"
    row = data.to_row({"premise": "a", "hypothesis": "b", "label": 2}, 1)
    assert (row["text"], row["label"]) == ("a\nb", "2")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a", "labels": ["x", "y"]}, "labels has 2 labels, but a row has one"),
        (
            {"question": "a", "id": 3},
            "question may be the prompt, but no column is its",
        ),
        ({"Answer": "a", "id": 3}, "Answer may be the answer, but no column is its"),
        ({"question": "a", "answer": "b", "image": {"bytes": "x"}}, "images and sound"),
        ({"prefix": "", "middle": "b", "suffix": None}, "prefix and suffix are empty"),
        ({"prefix": "a", "middle": " ", "suffix": "c"}, "middle is empty"),
    ],
)
def test_reason_names_the_column(row, reason):
    with pytest.raises(data.BadRow) as caught:
        data.to_row(row, 1)
    assert reason in str(caught.value)


def test_an_empty_label_leaves_raw_text():
    row = {"text": "a", "label": ""}
    assert data.kind_of(data.to_row(row, 1)) == "completion"
    with pytest.raises(data.BadRow, match="label is empty"):
        data.to_row(row, 1, "classification")


def test_spaces_have_a_meaning_in_raw_text_and_code():
    assert data.to_row({"text": "  a\n"}, 1)["text"] == "  a\n"
    code = {"prefix": "def f():\n", "middle": "    x\n", "suffix": "    y\n"}
    assert data.to_row(code, 1) == code | {"line": 1}


def test_unused_columns_are_counted_once_a_row():
    reader = formats.RowReader()
    for number in range(3):
        reader.read({"question": "a", "answer": "b", "id": number, "note": ""}, number)
    reader.read({"question": "a", "answer": "b", "input": "c", "url": "x"}, 4)
    assert reader.tally().unused == {"id": 3, "url": 1}


def test_many_sets_of_columns_do_not_grow_without_end():
    reader = formats.RowReader()
    for number in range(formats.MANY_PLANS + 10):
        reader.read({"question": "a", "answer": "b", f"x{number}": 1}, number)
    assert len(reader.plans) <= formats.MANY_PLANS
    tally = reader.tally()
    assert tally.found == {"instruction": formats.MANY_PLANS + 10}
    assert len(tally.unused) == formats.MANY_PLANS + 10


def test_tallies_add_up():
    parts = [formats.RowReader(), formats.RowReader()]
    for part, answer in zip(parts, ("b", ["c", "d"]), strict=True):
        part.read({"question": "a", "answer": answer, "id": 1}, 1)
    whole = parts[0].tally() + parts[1].tally()
    assert whole.unused == {"id": 2} and whole.found == {"instruction": 2}
    assert whole.repairs == {"only the first of several answers used": 1}


def test_names_are_compared_without_case_spaces_and_underscores():
    assert columns.compact("System_Prompt ") == "systemprompt"
    names = [n for v in vars(column_names).values() if isinstance(v, tuple) for n in v]
    assert all(columns.compact(n) == n for n in names if isinstance(n, str))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question": "a", "answer": "", "group": "x", "category": "y"},
            "answer is empty",
        ),
        ({"instruction": "a", "output": None, "text": "b"}, "output is empty"),
        ({"question": "", "answer": "a", "body": "b"}, "question is empty"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "", "messages": DIALOG},
            "rejected is empty",
        ),
    ],
)
def test_a_row_that_lacks_a_part_is_of_no_other_kind(row, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row(row, 1)
