"""Rows of every known format come into the one schema, or are rejected."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from helpers import shapes
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER, any_json
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data import schema
from colab_utils.data.shapes import column_names


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": DIALOG}, DIALOG),
        ({"messages": [SYSTEM, *DIALOG, *DIALOG]}, [SYSTEM, *DIALOG, *DIALOG]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Who?"},
                    {"from": "gpt", "value": "Me."},
                ]
            },
            [SYSTEM, *DIALOG],
        ),
        ({"prompt": "Who?", "completion": "Me."}, DIALOG),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, *DIALOG]),
        ({"instruction": "Who?", "output": "Me."}, DIALOG),
        ({"instruction": " Who?\n", "input": "", "output": "Me. "}, DIALOG),
        ({"instruction": "Who?", "context": None, "response": "Me."}, DIALOG),
        ({"question": "Who?", "answer": "Me.", "id": 7, "context": " "}, DIALOG),
        ({"question": "Who?", "answer": "Me.", "context": float("nan")}, DIALOG),
    ],
)
def test_to_messages_known_formats(row, expected):
    assert data.to_messages(row) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": DIALOG, "context": "Here."},
        {"prompt": [USER], "completion": [ASSISTANT], "context": "Here."},
        {"prompt": "Who?", "completion": "Me.", "context": "Here."},
        {"instruction": "Who?", "input": "Here.", "output": "Me."},
        {"question": "Who?", "answer": "Me.", "context": "Here."},
    ],
)
def test_to_messages_context_follows_first_prompt(row):
    before = json.dumps(row)
    user, assistant = data.to_messages(row)
    assert (user["content"], assistant["content"]) == ("Who?\n\nHere.", "Me.")
    assert json.dumps(row) == before


def test_to_messages_numbers_become_text():
    row = {"instruction": "Double it", "input": 0, "output": 0.5}
    user, assistant = data.to_messages(row)
    assert (user["content"], assistant["content"]) == ("Double it\n\n0", "0.5")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["Who?", "Me."], "not an object with columns, but list"),
        ({"note": "Me."}, "its columns match no known format"),
        ({"text": "Me."}, "a row of the kind completion has no messages"),
        ({"text": "Me.", "label": "a"}, "a row of the kind classification has no"),
        ({"chosen": "Me.", "rejected": "You."}, "a preference without a prompt"),
        ({"prefix": "a", "suffix": "b", "middle": "c"}, "a row of the kind fill-in"),
        ({"question": "Who?"}, "its columns match no known format"),
        ({"question": " ", "answer": "Me."}, "question is empty"),
        ({"question": "Who?", "answer": None}, "answer is empty"),
        ({"question": "Who?", "answer": float("nan")}, "answer is empty"),
        ({"question": "Who?", "answer": "\udcff"}, "answer is not valid UTF-8"),
        (
            {"question": "Who?", "answer": "Me.", "context": {"a": 1}},
            "context is not text, but dict",
        ),
        ({"messages": "Who?"}, "a conversation must be a list of messages"),
        ({"messages": ["Who?"]}, "a conversation must be a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role robot"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "a tool result that follows no answer",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "a tool call has no name",
        ),
        (
            {"messages": [USER | {"content": [{"type": "image"}, {"type": "text"}]}]},
            "content in parts: image is not text",
        ),
        ({"messages": [{"content": "x"}]}, "role is empty"),
        ({"messages": [{"role": "user"}]}, "user message is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [SYSTEM]}, "the roles must alternate"),
        ({"messages": [ASSISTANT, USER]}, "the roles must alternate"),
    ],
)
def test_to_messages_reason_of_bad_row(row, reason):
    with pytest.raises(data.BadRow) as caught:
        data.to_messages(row)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("label", [True, False, "true", "False", " TRUE"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "Me."},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": DIALOG},
        {"question": "Who?", "answer": "Me."},
    ],
)
def test_to_messages_never_takes_unpaired_preferences(row, label):
    with pytest.raises(data.BadRow, match=r"^unpaired preference: "):
        data.to_messages(row | {"label": label})
    for other in ("spam", 3, None, "", float("nan"), "truth"):
        assert data.to_messages(row | {"label": other}) == DIALOG


def read(raw: object, kind: str = "auto") -> data.Row | None:
    """Return the row, or None for a bad row; check both, and that `raw` stays."""
    before = repr(raw)
    try:
        row = data.to_row(raw, 1, kind)
    except data.BadRow as error:
        assert str(error).isprintable() and len(str(error)) < 300
        return None
    finally:
        assert repr(raw) == before
    assert kind in ("auto", data.kind_of(row))
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    assert text.encode() and json.loads(text) == row
    shapes.check(row)
    assert data.prompt_of(row) + data.answer_of(row) or "tool_calls" in text
    return row


@pytest.mark.parametrize(("raw", "kind"), shapes.SHAPES)
def test_to_row_known_shapes(raw, kind):
    row = read(raw)
    assert row is not None and data.kind_of(row) == kind


@pytest.mark.slow
@given(st.integers(0, 2**40))
@settings(deadline=None, max_examples=3000)
def test_to_row_damaged_rows_give_a_row_or_a_reason(seed):
    row = read(shapes.damaged(seed))
    read(shapes.damaged(seed), list(schema.COLUMNS)[seed % 5])
    if row and "messages" in row:
        assert data.to_messages({"messages": row["messages"]}) == row["messages"]


def test_damaged_rows_are_often_still_rows():
    """The test above checks rows of all kinds, not only reasons."""
    rows = [read(shapes.damaged(seed)) for seed in range(400)]
    kinds = Counter(data.kind_of(row) for row in rows if row)
    assert set(kinds) == set(schema.COLUMNS) and 80 < sum(kinds.values()) < 320


NAMES = [
    name
    for names in vars(column_names).values()
    if isinstance(names, tuple)
    for name in names
    if isinstance(name, str)
]
any_row = st.dictionaries(st.sampled_from(NAMES), any_json, max_size=4) | any_json


@pytest.mark.slow
@given(any_row)
@example({"messages": [{"role": "\x1b"}]})
@example({"question": "a" * 10_000_000, "answer": "b"})
@example({"text": "[INST]" * 1_000_000})
@example({"text": "### Human:" * 500_000})
@example([])
@settings(deadline=None, max_examples=300)
def test_to_row_any_json_gives_a_row_or_a_reason(raw):
    read(raw)


@pytest.mark.parametrize(
    ("raw", "kind", "columns"),
    [
        ({"text": "Who?", "label": "Me."}, "instruction", {"messages"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "instruction", {"messages"}),
        ({"question": "a", "answer": "b"}, "classification", {"text", "label"}),
        ({"text": "[INST] a [/INST] b"}, "completion", {"text"}),
        (
            {"text": "one two three four five"},
            "fill-in-the-middle",
            {"prefix", "middle", "suffix"},
        ),
        ({"text": "a", "label": "b"}, "completion", {"text"}),
        ({"question": "a", "answer": "b", "text": "c"}, "completion", {"text"}),
        (
            {"question": "a", "answer": "b", "chosen": "c", "rejected": "d"},
            "instruction",
            {"messages"},
        ),
    ],
)
def test_to_row_makes_the_kind_that_the_reader_asks_for(raw, kind, columns):
    assert set(data.to_row(raw, 1, kind)) == columns | {"line"}


@pytest.mark.parametrize("kind", ["completion", "preference", "fill-in-the-middle"])
def test_to_row_says_what_cannot_be_made(kind):
    with pytest.raises(data.BadRow, match=f"kind instruction can't become .* {kind}"):
        data.to_row({"question": "a", "answer": "b"}, 1, kind)


@pytest.mark.slow
@given(any_json, any_json)
@example("\udcff", None)
@settings(deadline=None)
def test_to_row_any_label_is_text_or_none(group, category):
    raw = {"question": "q", "answer": "a", "group": group, "category": category}
    try:
        row = data.to_row(raw, 1)
    except data.BadRow as error:
        assert str(error).endswith("is not valid UTF-8")
        return
    assert json.dumps(row, ensure_ascii=False).encode()
    for name in ("group", "category"):
        assert row.get(name, "none").strip()
        assert isinstance(raw[name], (str, int, float)) or name not in row


def test_prompt_of_and_answer_of_and_short_answers():
    row = {"messages": [SYSTEM, *DIALOG, {**USER, "content": "Why?"}, ASSISTANT]}
    assert data.prompt_of(row) == "Be brief.\nWho?\nMe.\nWhy?"
    assert data.answer_of(row) == "Me."
    long = {"messages": [USER, {**ASSISTANT, "content": "x" * 31}]}
    assert data.short_answers([row] * 19 + [long])
    assert not data.short_answers([row] * 18 + [long])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": "", "response": "a"},
        {"messages": None, "question": "q", "answer": "a"},
        {"prompt": None, "completion": None, "question": "q", "answer": "a"},
        {"messages": [{"role": None, "from": "human", "content": None, "value": "q"}]},
    ],
)
def test_to_messages_empty_columns_do_not_hide_filled_ones(row):
    if row.get("messages"):
        row["messages"].append({"role": "assistant", "content": "a"})
    texts = [turn["content"] for turn in data.to_messages(row)]
    assert texts == ["q", "a"]


def test_to_messages_infinity_is_empty():
    with pytest.raises(data.BadRow, match="answer is empty"):
        data.to_messages({"question": "q", "answer": float("inf")})
