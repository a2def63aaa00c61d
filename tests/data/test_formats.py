"""Rows of every known format come into the one schema, or are rejected."""

from __future__ import annotations

import json

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER, WORDS, any_json
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colab_utils import data


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
        ({"messages": []}, "a conversation must be a list of messages"),
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


COLUMNS = [
    *("messages", "conversations", "prompt", "completion", "instruction", "input"),
    *("output", "response", "question", "answer", "context"),
]
turn = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value"]),
    st.sampled_from(WORDS) | any_json,
)
cell = st.sampled_from(WORDS) | st.lists(turn, max_size=5) | any_json
any_row = st.dictionaries(st.sampled_from(COLUMNS), cell, max_size=6) | any_json


@pytest.mark.slow
@given(any_row)
@example({"messages": [{"role": "\x1b"}]})
@settings(deadline=None, max_examples=400)
def test_to_messages_any_row_gives_messages_or_reason(row):
    try:
        messages = data.to_messages(row)
    except data.BadRow as error:
        assert str(error).isprintable()
        return
    texts = [turn["content"] or str(turn["tool_calls"]) for turn in messages]
    assert messages[-1]["role"] == "assistant" and all(text.strip() for text in texts)
    assert json.dumps(messages, ensure_ascii=False).encode()
    assert data.to_messages({"messages": messages}) == messages


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
