"""The kind of a row is recognized by its columns, however they are named."""

from __future__ import annotations

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER

from colab_utils import data
from colab_utils.data import schema
from colab_utils.data.shapes import column_names, formats, kinds


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
        {
            "system": "Be brief.",
            "question": "Who?",
            "answers": {"text": ["Me.", " Me."]},
        },
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
            {"prompt": "f(", "suffix": ")", "completion": "1"},
            "fill-in-the-middle",
            "columns prompt, completion and suffix",
        ),
        (
            {"messages": DIALOG, "rejected_response": "You."},
            "preference",
            "columns messages and rejected_response",
        ),
        (
            {"question": "a b", "sentence": "c d", "label": 0},
            "classification",
            "columns question, sentence and label",
        ),
        (
            {"title": "a", "text": "b", "label": 0, "url": "x"},
            "classification",
            "columns title, text and label",
        ),
        ({"question_text": "a", "target": "1"}, "classification", "_text and target"),
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
    assert data.to_row({"text": "a", "labels": "[7]"}, 1)["label"] == "7"


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
        ({"text": "a", "gold_label": "-"}, "gold_label is -"),
        (
            {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
            "labels judges each of several answers",
        ),
        ({"text": "a", "label": "b", "answer": "accept", "_input_hash": 1}, "Prodigy"),
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
        part.read_all({"question": "a", "answer": answer, "id": 1}, 1)
    whole = parts[0].tally() + parts[1].tally()
    assert whole.unused == {"id": 2} and whole.found == {"instruction": 3}
    assert whole.repairs == {"several answers to a prompt, a row for each": 1}


def test_names_are_compared_without_case_spaces_and_underscores():
    assert column_names.compact("System_Prompt ") == "systemprompt"
    names = [n for v in vars(column_names).values() if isinstance(v, tuple) for n in v]
    assert all(column_names.compact(n) == n for n in names if isinstance(n, str))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question": "a", "answer": "", "group": "x", "category": "y"},
            "answer is empty",
        ),
        ({"instruction": "a", "output": None, "text": "b"}, "output is empty"),
        ({"question": "", "answer": "a", "body": "b"}, "question is empty"),
        ({"question": "", "answer": "a", "text": "b c"}, "question is empty"),
        ({"question": "", "answer": "a", "document": "b c"}, "question is empty"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "", "messages": DIALOG},
            "rejected is empty",
        ),
    ],
)
def test_a_row_that_lacks_a_part_is_of_no_other_kind(row, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row(row, 1)


# --- nothing that the answer depends on is lost ------------------------------------


@pytest.mark.parametrize(
    "column",
    ["context", "article", "Document", "passage", "paragraph", "premise", "text"],
)
def test_the_text_that_a_question_is_about_follows_it(column):
    raw = {"question": "How many?", "answer": "3", column: "There are 3 mills."}
    asked = data.to_messages(raw)[0]["content"]
    assert asked == "How many?\n\nThere are 3 mills."


def test_a_context_of_several_texts_is_joined():
    raw = {"question": "How many?", "answer": "3", "context": ["a b", "c"]}
    assert data.to_messages(raw)[0]["content"] == "How many?\n\na b\n\nc"


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("text", "### Instruction:\nHow many?\n\n### Response:\n3"),
        ("text", "many?"),
        ("document", "manual.pdf"),
        ("input", "nan"),
        ("input", "None"),
        ("context", "<noinput>"),
    ],
)
def test_a_cell_that_adds_nothing_is_left_out_and_counted(column, cell):
    reader = formats.RowReader()
    row, _ = reader.read({"instruction": "How many?", "output": "3", column: cell}, 1)
    assert row["messages"][0]["content"] == "How many?"
    assert reader.tally().unused == {column: 1}


@pytest.mark.parametrize("asks", ["problem", "question"])
def test_the_solution_is_the_answer_and_its_bare_result_is_not_used(asks):
    reader = formats.RowReader()
    raw = {asks: "3 + 4?", "solution": "3 and 4 are 7.", "answer": 7}
    row, _ = reader.read(raw, 1)
    assert data.answer_of(row) == "3 and 4 are 7."
    assert reader.tally().unused == {"answer": 1}
    assert data.answer_of(data.to_row(raw | {"solution": ""}, 1)) == "7"


# --- several answers ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("answers", ["Me.", "I.", " Me. ", ""]),
        ("answers", {"text": ["Me.", "I.", "Me."], "answer_start": [0, 1, 0]}),
        ("answers", "['Me.', 'I.']"),
        ("responses", ["Me.", "I."]),
        ("completions", [{"response": "Me."}, {"response": "I."}]),
    ],
)
def test_several_answers_are_rows_of_one_group(column, cell):
    raw = {"question": "Who?", column: cell}
    rows, found = formats.RowReader().read_all(raw, 3)
    assert [data.answer_of(row) for row in rows] == ["Me.", "I."]
    assert {data.prompt_of(row) for row in rows} == {"Who?"}
    assert (found, {row["line"] for row in rows}) == ("instruction", {3})
    (group,) = {row["group"] for row in rows}
    others, _ = formats.RowReader().read_all({**raw, "question": "You?"}, 3)
    assert group and group != others[0]["group"]
    own, _ = formats.RowReader().read_all({**raw, "group": "g"}, 3)
    assert {row["group"] for row in own} == {"g"}
    with pytest.raises(data.BadRow, match="several answers"):
        data.to_row(raw, 1)


def test_the_split_keeps_the_answers_to_one_prompt_on_one_side(tmp_path):
    names = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo"]
    raws = [
        {"prompt": f"Where does {name} live?", "responses": [name, f"{name}'s house"]}
        for name in names
    ]
    data.write_jsonl(tmp_path / "a.jsonl", raws)
    rows, _ = data.load(str(tmp_path / "a.jsonl"))
    train, test = data.split(rows, 0.3, 0)
    assert len(rows) == 20 and len(test) == 6
    assert not {row["group"] for row in train} & {row["group"] for row in test}


# --- what a row says about itself ---------------------------------------------------


@pytest.mark.parametrize(
    ("column", "off", "on"),
    [
        ("weight", 0, 1.0),
        ("loss_weight", 0.0, 1),
        ("train", False, "true"),
        ("mask", True, 0),
    ],
)
def test_a_row_that_is_not_trained_is_rejected_by_name(column, off, on):
    for raw in ({"question": "Who?", "answer": "Me."}, {"text": "a"}):
        with pytest.raises(data.BadRow, match=f"not trained: its {column} is"):
            data.to_row({**raw, column: off}, 1)
        reader = formats.RowReader()
        reader.read({**raw, column: on}, 1)
        assert reader.tally().unused == {}
        reader.read({**raw, column: 72}, 2)
        assert reader.tally().unused == {column: 1}


@pytest.mark.parametrize(
    ("raw", "good"),
    [
        ({"is_correct": False}, False),
        ({"thumbs_up": True}, True),
        ({"label": "good"}, True),
        ({"label": "Bad"}, False),
        ({"feedback": "thumbs_down"}, False),
        ({"rejected": True}, False),
        ({"rejected": False}, True),
        ({"is_correct": "no"}, False),
    ],
)
def test_the_verdict_of_a_row_is_found(raw, good):
    verdict = kinds.GOOD if good else kinds.BAD
    for row in ({"prompt": "Who?", "response": "Me."}, {"messages": DIALOG}):
        assert formats.RowReader().read({**row, **raw}, 1)[1] == verdict


@pytest.mark.parametrize("label", ["no", "positive", "billing", 0.5])
def test_a_class_next_to_an_answer_is_no_verdict(label):
    raw = {"prompt": "Who?", "response": "Me.", "label": label}
    assert formats.RowReader().read(raw, 1)[1] == kinds.OTHER


def test_a_row_in_a_column_is_read():
    inner = {"question": "Who?", "answer": "Me."}
    viewer = {"row_idx": 0, "row": inner, "truncated_cells": []}
    batch = {"custom_id": "a", "url": "/v1", "body": {"model": "x", "messages": DIALOG}}
    assert data.to_messages(viewer) == data.to_messages(batch) == DIALOG
    with pytest.raises(data.BadRow, match="no known format"):
        data.to_row({"data": {"text": "a"}, "annotations": [{"result": []}]}, 1)
