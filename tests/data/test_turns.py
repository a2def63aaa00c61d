"""Conversations become messages: weights, tools, parts and repairs."""

from __future__ import annotations

import json

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER
from helpers.shapes import CALL, TOOL

from colab_utils import data
from colab_utils.data.shapes import formats


def read(turns: list, **more: object) -> tuple[list, dict, dict]:
    """Return (messages, repairs, keys not used) of a conversation."""
    reader = formats.RowReader()
    row, _ = reader.read({"messages": turns, **more}, 1)
    tally = reader.tally()
    return row["messages"], dict(tally.repairs), dict(tally.keys)


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}],
        [{"speaker": "User", "text": "Who?"}, {"speaker": "Bot", "text": "Me."}],
        [{"role": "USER", "content": ["Who?"]}, {"role": "model", "content": "Me."}],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Wh"}, {"text": "o?"}],
            },
            {"role": "assistant", "content": {"type": "text", "text": "Me."}},
        ],
        [{"human": "Who?", "assistant": "Me."}],
        json.dumps(DIALOG),
        [json.dumps(turn) for turn in DIALOG],
        [{"Role": "User", "Content": "Who?"}, {"Role": "Model", "Content": "Me."}],
        [
            {"role": "user", "parts": [{"text": "Who?"}]},
            {"role": "model", "parts": [{"text": "Me."}]},
        ],
    ],
)
def test_turns_of_many_spellings(turns):
    assert read(turns) == (DIALOG, {}, {})


@pytest.mark.parametrize(
    ("turns", "messages", "repair"),
    [
        ([ASSISTANT, *DIALOG], DIALOG, "an answer before the first question removed"),
        ([*DIALOG, USER], DIALOG, "a question after the last answer removed"),
        (
            [*DIALOG, {"role": "tool", "content": "x"}],
            DIALOG,
            "a tool result after the last answer removed",
        ),
        (
            [SYSTEM, {**SYSTEM, "content": "Be kind."}, *DIALOG],
            [{**SYSTEM, "content": "Be brief.\n\nBe kind."}, *DIALOG],
            "system messages joined",
        ),
        (
            [USER, {**USER, "content": "Why?"}, ASSISTANT],
            [{**USER, "content": "Who?\n\nWhy?"}, ASSISTANT],
            "user messages in a row joined",
        ),
        (
            [{**SYSTEM, "content": " "}, *DIALOG],
            DIALOG,
            "an empty system message removed",
        ),
    ],
)
def test_repairs_are_counted(turns, messages, repair):
    assert read(turns) == (messages, {repair: 1}, {})


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, SYSTEM, ASSISTANT], "a system message after the first question"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "follows no answer"),
        ([USER, ASSISTANT, {**ASSISTANT, "weight": 0}], "only one is trained"),
        ([USER, {**ASSISTANT, "weight": 0}], "no answer is trained"),
        ([USER, {**ASSISTANT, "loss": 0.5}], "loss of a message is not 0 or 1"),
        ([USER | {"content": [{"type": "image_url"}]}, ASSISTANT], "image_url is not"),
        ([USER, {**ASSISTANT, "loss_weight": 0.5}], "loss_weight of a message is not"),
        ([USER, {**ASSISTANT, "train_detail": [{"train": False}]}], "train_detail: a"),
        ([ASSISTANT], "no question"),
        ([SYSTEM, ASSISTANT], "no question"),
        ([], "messages is empty"),
        ([USER, {**ASSISTANT, "content": 10**5000}], "too many digits"),
    ],
)
def test_turns_that_cannot_be_repaired(turns, reason):
    with pytest.raises(data.BadRow, match=reason):
        read(turns)


@pytest.mark.parametrize("key", ["weight", "loss", "train", "training", "loss_weight"])
def test_flags_of_answers_are_weights(key):
    for off in (0, 0.0, False, "false", "0"):
        turns = [USER, {**ASSISTANT, key: off}, USER, {**ASSISTANT, key: True}]
        messages, _, keys = read(turns)
        assert messages == [USER, {**ASSISTANT, "weight": 0}, *DIALOG] and keys == {}
    for on in (1, 1.0, True, "true", None):
        assert read([USER, {**ASSISTANT, key: on}])[0] == DIALOG
    keys = read([{**USER, key: 1}, ASSISTANT])[2]
    assert keys == {f"{key} of a user message": 1}


@pytest.mark.parametrize("key", ["mask", "ignore_loss"])
def test_masked_answers_have_weight_0(key):
    turns = [USER, {**ASSISTANT, key: True}, USER, {**ASSISTANT, key: False}]
    assert read(turns) == ([USER, {**ASSISTANT, "weight": 0}, *DIALOG], {}, {})
    assert read([{**USER, key: True}, ASSISTANT]) == (DIALOG, {}, {})


@pytest.mark.parametrize(
    "system",
    [[{"text": "Be brief."}], {"role": "system", "parts": [{"text": "Be brief."}]}],
)
def test_a_system_column_may_have_parts(system):
    raw = {"contents": DIALOG, "systemInstruction": system}
    assert data.to_messages(raw) == [SYSTEM, *DIALOG]


def test_unknown_keys_are_named():
    turns = [{**USER, "mood": "x", "id": ""}, {**ASSISTANT, "mood": 3, "text": "other"}]
    assert read(turns) == (DIALOG, {}, {"mood": 1, "text": 1})


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "content": "",
            "function_call": {"name": "look", "arguments": '{"who": "x"}'},
        },
        {
            "from": "function_call",
            "value": '{"name": "look", "arguments": {"who": "x"}}',
        },
        {
            "from": "tool_call",
            "value": '[{"name": "look", "parameters": {"who": "x"}}]',
        },
    ],
)
@pytest.mark.parametrize("role", ["tool", "observation", "function", "ipython"])
def test_tool_calls_have_one_form(turn, role):
    result = {"from": role, "value": "y", "tool_call_id": "1", "name": "look"}
    messages, repairs, keys = read([USER, turn, result, ASSISTANT])
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert messages[2] == {"role": "tool", "content": "y"} | {
        "tool_call_id": "1",
        "name": "look",
    }
    assert messages[3] == ASSISTANT and repairs == keys == {}


def test_text_and_ids_of_calls_are_kept():
    turn = {**ASSISTANT, "tool_calls": [{**CALL, "id": "c7"}]}
    assert read([USER, turn])[0][1]["tool_calls"] == [{**CALL, "id": "c7"}]
    split = [{"from": "gpt", "value": "Me."}, {"from": "function_call", "value": CALL}]
    joined = read([USER, *split])
    assert joined == ([USER, {**ASSISTANT, "tool_calls": [CALL]}], {}, {})


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([{"function": {"arguments": {}}}], "a tool call has no name"),
        ([{"name": "f", "arguments": "[1]"}], "are not an object"),
        (
            [{"name": "f", "arguments": "{1"}],
            "arguments of a tool call is not valid JSON",
        ),
        ([{"name": "f", "arguments": {"a": "\ud800"}}], "can't be written as JSON"),
        ([3], "a tool call is not an object, but int"),
    ],
)
def test_broken_calls(calls, reason):
    with pytest.raises(data.BadRow, match=reason):
        read([USER, {"role": "assistant", "tool_calls": calls}])


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], TOOL, [json.dumps(TOOL)]]
)
def test_tools_have_one_form(column, tools):
    row = data.to_row({"messages": DIALOG, column: tools}, 1)
    assert row["tools"] == [TOOL]


def test_tools_without_a_name_are_counted():
    _, repairs, _ = read(DIALOG, tools=[{"type": "function"}])
    assert repairs == {"a tool without a name removed": 1}


@pytest.mark.parametrize(
    "history",
    [[["a", "b"]], ["a", "b"], [{"role": "user", "content": "a"}, ASSISTANT]],
)
def test_history_holds_the_earlier_turns(history):
    raw = {"instruction": "Who?", "input": "Here.", "output": "Me.", "history": history}
    messages = data.to_messages(raw | {"system": "Be brief."})
    assert messages[0] == SYSTEM and [m["content"] for m in messages[1::2]] == [
        "a",
        "Who?\n\nHere.",
    ]


def test_an_answer_may_be_a_list_of_calls():
    calls = [
        {"name": "look", "arguments": {"who": "x"}},
        {"name": "f", "arguments": {}},
    ]
    raw = {"query": "Who?", "answers": json.dumps(calls), "tools": json.dumps([TOOL])}
    row = data.to_row(raw, 1)
    called = [call["function"] for call in row["messages"][1]["tool_calls"]]
    assert called == calls and row["tools"] == [TOOL]


PART_SPELLINGS = {
    "anthropic": (
        {"type": "tool_use", "id": "c7", "name": "look", "input": {"who": "x"}},
        {"type": "tool_result", "tool_use_id": "c7", "content": [{"text": "y"}]},
    ),
    "bedrock": (
        {"toolUse": {"toolUseId": "c7", "name": "look", "input": {"who": "x"}}},
        {"toolResult": {"toolUseId": "c7", "content": [{"text": "y"}]}},
    ),
    "gemini": (
        {"functionCall": {"id": "c7", "name": "look", "args": {"who": "x"}}},
        {"functionResponse": {"id": "c7", "response": "y"}},
    ),
}


@pytest.mark.parametrize("name", PART_SPELLINGS)
def test_calls_and_results_in_parts_are_kept(name):
    call, result = PART_SPELLINGS[name]
    turns = [USER, {"role": "assistant", "content": [{"text": "Wait."}, call]}]
    turns.append({"role": "user", "content": [result, {"text": "Who?"}]})
    messages, _, keys = read([*turns, ASSISTANT])
    assert messages == [
        USER,
        {"role": "assistant", "content": "Wait.", "tool_calls": [{**CALL, "id": "c7"}]},
        {"role": "tool", "content": "y", "tool_call_id": "c7"},
        USER,
        ASSISTANT,
    ]
    assert keys == {}
    turns[1]["content"] = [call]
    turns[2]["content"] = [result]
    messages, _, _ = read([*turns, ASSISTANT])
    assert messages[1]["content"] is None and messages[2]["role"] == "tool"
    assert len(messages) == 4


def test_a_result_that_is_an_object_becomes_json():
    result = {"functionResponse": {"name": "look", "response": {"é": [1]}}}
    call = {"functionCall": {"name": "look", "args": {}}}
    turns = [USER, {"role": "model", "parts": [call]}]
    messages, _, _ = read([*turns, {"role": "user", "parts": [result]}, ASSISTANT])
    assert messages[2] == {"role": "tool", "content": '{"é": [1]}', "name": "look"}


def test_the_schema_of_a_tool_has_the_name_of_openai():
    tool = {"name": "look", "input_schema": {"type": "object"}}
    row = data.to_row({"messages": DIALOG, "tools": [tool]}, 1)
    (made,) = row["tools"]
    assert made["function"] == {"name": "look", "parameters": {"type": "object"}}
