"""The schema: the kind of a row, its texts, and rejected rows."""

from __future__ import annotations

import copy

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER

from colab_utils import data
from colab_utils.data import schema

CALL = {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}
ROWS = {
    schema.INSTRUCTION: {"messages": [SYSTEM, *DIALOG]},
    schema.COMPLETION: {"text": "Once."},
    schema.PREFERENCE: {
        "prompt": [USER],
        "chosen": [ASSISTANT],
        "rejected": [{"role": "assistant", "content": "You."}],
    },
    schema.CLASSIFICATION: {"text": "Buy!", "label": "spam"},
    schema.MIDDLE: {"prefix": "a = ", "middle": "1", "suffix": "\nprint(a)"},
}


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        (schema.INSTRUCTION, "Be brief.\nWho?", "Me."),
        (schema.COMPLETION, "", "Once."),
        (schema.PREFERENCE, "Who?", "Me."),
        (schema.CLASSIFICATION, "Buy!", "spam"),
        (schema.MIDDLE, "a = \n\nprint(a)", "1"),
    ],
)
def test_kind_prompt_and_answer(kind, prompt, answer):
    row = ROWS[kind]
    assert data.kind_of(row) == kind
    assert (data.prompt_of(row), data.answer_of(row)) == (prompt, answer)


def test_kind_of_names_the_columns():
    with pytest.raises(ValueError, match="columns chosen, line is of no known kind"):
        data.kind_of({"chosen": [], "line": 1})


def test_said_includes_calls_of_tools():
    call = '{"arguments": {"a": 1, "b": 2}, "name": "add"}'
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert schema.said(turn) == call
    assert schema.said({**turn, "content": "Adding."}) == f"Adding.\n{call}"


@pytest.mark.parametrize("kind", ROWS)
def test_map_texts_changes_texts_only(kind):
    row = {**ROWS[kind], "line": 3, "group": "g"}
    before = copy.deepcopy(row)
    changed = data.map_texts(row, str.upper)
    assert row == before
    assert data.prompt_of(changed) == data.prompt_of(row).upper()
    label = kind == schema.CLASSIFICATION
    answer = data.answer_of(row)
    assert data.answer_of(changed) == (answer if label else answer.upper())
    assert changed["line"] == 3 and changed["group"] == "g"


def test_map_texts_keeps_calls_of_tools():
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert data.map_texts({"messages": turns}, str.upper)["messages"][1] == turns[1]


def test_reject_start_is_short_and_ascii():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert schema.reject(1, "x", deep).start == ""
    assert schema.reject(
        1, "x", {"a": "é" * 300}
    ).start == '{"a": "' + r"\u00e9" * 32 + ("\\")
    assert schema.reject(1, "x", "\ud800 é").as_dict() == {
        "line": 1,
        "reason": "x",
        "start": r"\ud800 \xe9",
    }
