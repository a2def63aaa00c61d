"""Rows with tools: what the templates write of them, and what is trained."""

from __future__ import annotations

import copy
import json

import pytest
from helpers.masks import ODD, QUIET, decoded, with_template
from helpers.templates import FAMILIES as WITHOUT_TOOLS
from helpers.tool_templates import (
    FAMILIES,
    LOOK,
    ONE_CALL,
    call,
    plain,
    tagged,
    tool_row,
    with_tools,
)
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.tokens.rendering import Conversations

CALL = {"content": None, "tool_calls": [call('{"town": "Lima", "year": 3}')]}
ANSWER = {"content": "A maple."}
ARGUMENTS = '{"town": "Lima", "year": 3}'
# What each template trains for a row of CALL and ANSWER.
TRAINED = {
    "llama31": [
        f'{{"name": "look", "parameters": {ARGUMENTS}}}<|eot_id|>',
        "A maple.<|eot_id|>",
    ],
    "hermes": [
        f'<tool_call>\n{{"name": "look", "arguments": {ARGUMENTS}}}\n</tool_call>'
        "<|im_end|>",
        "A maple.<|im_end|>",
    ],
    "mistral_v3": [
        f'[TOOL_CALLS] [{{"name": "look", "arguments": {ARGUMENTS}, '
        '"id": "abcdefgh1"}]</s>',
        "A maple.</s>",
    ],
    "xml": [
        "\n<tool_call>\n<function=look>\n<parameter=town>\nLima\n</parameter>\n"
        "<parameter=year>\n3\n</parameter>\n</function>\n</tool_call><|im_end|>",
        "A maple.<|im_end|>",
    ],
    "deepseek": [f"<|call|> look\n{ARGUMENTS}<|call_end|> \n</s>", "A maple.</s>"],
}


@pytest.mark.parametrize("results", [1, 2])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_calls_and_answers_are_trained_and_results_are_read(name, results):
    tokenizer = with_tools(name)
    (tokens,) = data.encodings(tool_row(CALL, ANSWER, results=results), tokenizer)
    found = [text.lstrip(" ") for text in decoded(tokens, tokenizer)]
    assert found == TRAINED[name]
    text = tokenizer.decode(tokens["input_ids"])
    assert text.count("maple") == results + 1 and "Return the tree of a town." in text


def reference(row: data.Row, name: str, tokenizer) -> data.Tokens:
    """Return the tokens that transformers marks, for the template with tags."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = tagged(name)
    found = other.apply_chat_template(
        row["messages"],
        tools=row["tools"],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return {name: found[name] for name in ("input_ids", "assistant_masks")}


PLAIN = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁<|>"),
    min_size=1,
    max_size=8,
)
VALUES = ODD | st.integers() | st.none() | st.booleans() | st.lists(PLAIN, max_size=2)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@QUIET
@given(
    texts=st.tuples(ODD, ODD, ODD, ODD),
    arguments=st.dictionaries(PLAIN, VALUES, max_size=3),
    tool=PLAIN,
    calls=st.integers(1, 2),
    results=st.integers(0, 2),
)
def test_masks_of_odd_tools_are_those_of_transformers(
    name, texts, arguments, tool, calls, results
):
    calls = 1 if name in ONE_CALL else calls
    question, beside, result, answer = texts
    numbers = ["abcdefgh1", "abcdefgh2"][:calls]
    tokenizer = with_tools(name)
    if not Conversations(tokenizer).takes_text_beside_calls():
        beside = ""
    messages = [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": beside,
            "tool_calls": [call(arguments, tool, number) for number in numbers],
        },
        *[{"role": "tool", "tool_call_id": numbers[0], "content": result}] * results,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    row = {"messages": messages, "tools": [LOOK]}
    assert data.encodings(row, tokenizer) == [reference(row, name, tokenizer)]
    # A template with tags of its own is asked for them.
    other = copy.deepcopy(tokenizer)
    other.chat_template = tagged(name)
    assert data.encodings(row, other) == [reference(row, name, tokenizer)]


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_call_of_weight_0_is_not_trained(name, tags):
    tokenizer = with_tools(name)
    if tags:
        tokenizer.chat_template = tagged(name)
    row = tool_row({**CALL, "weight": 0}, ANSWER)
    (tokens,) = data.encodings(row, tokenizer)
    found = [text.lstrip(" ") for text in decoded(tokens, tokenizer)]
    assert found == TRAINED[name][1:]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(
    "arguments", [{"town": "Lima", "year": 3}, ARGUMENTS, f" {ARGUMENTS}\n"]
)
def test_arguments_as_json_text_are_those_of_the_object(name, arguments):
    """OpenAI's files have text. Most templates would write it as a quoted string."""
    tokenizer = with_tools(name)
    tokens = [
        data.encodings(
            tool_row({"content": None, "tool_calls": [call(a)]}, ANSWER), tokenizer
        )
        for a in (arguments, {"town": "Lima", "year": 3})
    ]
    assert tokens[0] == tokens[1]


def test_arguments_that_are_no_json_object_stay_text():
    tokenizer = with_tools("xml")
    tokenizer.chat_template = plain("hermes")
    for text in ("Lima", "[1]", '{"town": ', "NaN", "[" * 100_000):
        row = tool_row({"content": None, "tool_calls": [call(text)]}, ANSWER)
        (tokens,) = data.encodings(row, tokenizer)
        assert json.dumps(text) in tokenizer.decode(tokens["input_ids"])


@pytest.mark.parametrize(
    ("ids", "results", "expected"),
    [
        (["1", "2"], ["2", "1"], ["000000002", "000000001"]),
        (["call_1", "call_2"], ["call_1", "call_2"], ["000000001", "000000002"]),
        ([None, None], [None, None], ["000000001", "000000002"]),
        (["1", "2"], [None, "1"], ["000000001", "000000002"]),
    ],
)
def test_ids_that_mistral_rejects_are_numbered(ids, results, expected):
    calls = [{**call({}, number=n), "id": n} for n in ids]
    row = tool_row({"content": None, "tool_calls": calls}, ANSWER, results=2)
    row["messages"][2:4] = [
        {"role": "tool", "tool_call_id": n, "content": "maple"} for n in results
    ]
    tokenizer = with_tools("mistral_v3")
    (tokens,) = data.encodings(row, tokenizer)
    text = tokenizer.decode(tokens["input_ids"])
    assert text.count('"id": "000000001"') == text.count('"id": "000000002"') == 1
    found = [part[:9] for part in text.split('"call_id": "')[1:]]
    assert found == expected
    assert row["messages"][1]["tool_calls"][0]["id"] == ids[0]  # the row stays


@pytest.mark.slow
def test_masks_with_the_published_qwen3_template():
    """TRL ships Qwen3's own template: it is written like the one of Hermes."""
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = with_tools("hermes")
    tokenizer.chat_template = qwen3_chat_template
    (tokens,) = data.encodings(tool_row(CALL, ANSWER, results=2), tokenizer)
    assert decoded(tokens, tokenizer) == TRAINED["hermes"]


# --- templates without tools ----------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WITHOUT_TOOLS))
def test_takes_tools_of_templates_without_them(name):
    assert not Conversations(with_template(name)).takes_tools()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_takes_tools_of_templates_with_them(name):
    chats = Conversations(with_tools(name))
    assert chats.takes_tools()
    beside = name not in ("llama31", "mistral_v3")
    assert chats.takes_text_beside_calls() == beside


@pytest.mark.parametrize(
    "missing", ["(tools | tojson)", "call.function.arguments", "turn.content +"]
)
def test_takes_tools_needs_tools_arguments_and_results(missing):
    tokenizer = with_tools("xml")
    new = {"turn.content +": "('' if turn.role == 'tool' else turn.content) +"}
    text = plain("xml").replace(missing, new.get(missing, "{}"))
    tokenizer.chat_template = text.replace("{} | items", "{}.items()")
    assert not Conversations(tokenizer).takes_tools()


def test_takes_tools_of_a_second_template():
    """Some models have one template for tools and one for all else."""
    tokenizer = with_tools("hermes")
    row = tool_row(CALL, ANSWER)
    expected = data.encodings(row, tokenizer)
    tokenizer.chat_template = {"default": "x", "tool_use": plain("hermes")}
    assert Conversations(tokenizer).takes_tools()
    assert data.encodings(row, tokenizer) == expected


def test_drop_unsupported_tools_of_the_courses_template(tokenizer, capsys):
    """Llama 2 knows no tools, and neither does the course's template."""
    chat = {"messages": tool_row(CALL, ANSWER)["messages"][:1], "line": 1}
    chat["messages"] = [*chat["messages"], {"role": "assistant", "content": "Me."}]
    calls = {**tool_row(CALL, ANSWER), "line": 2}
    del calls["tools"]
    tools = {**chat, "tools": [LOOK], "line": 3}
    kept, rejected = data.drop_unsupported_tools([chat, calls, tools], tokenizer)
    assert kept == [chat]
    reason = "uses tools, and the model's chat template takes none"
    assert [(r.line, r.reason) for r in rejected] == [(2, reason), (3, reason)]
    out = capsys.readouterr().out
    assert out.startswith("2 of 3 rows are rejected, because the chat template of")
    assert "set MODEL to a model whose own template takes tools" in out
    for step in (data.token_lengths, data.tokenize):
        with pytest.raises(ValueError, match=f"row of line 2: It {reason}"):
            step([calls], tokenizer)


def test_drop_unsupported_tools_keeps_what_the_template_writes(capsys):
    tokenizer = with_tools("hermes")
    rows = [tool_row(CALL, ANSWER), tool_row({**CALL, "content": "I look."}, ANSWER)]
    assert data.drop_unsupported_tools(rows, tokenizer) == (rows, [])
    assert capsys.readouterr().out == ""
    text = tokenizer.decode(data.encodings(rows[1], tokenizer)[0]["input_ids"])
    assert "assistant\nI look.\n<tool_call>" in text


def test_drop_unsupported_tools_rejects_what_a_template_leaves_out():
    """Llama 3.1's template writes one call a turn, and no text next to it."""
    tokenizer = with_tools("llama31")
    both = tool_row({**CALL, "content": "I look."}, ANSWER, line=4)
    two = tool_row({**CALL, "tool_calls": CALL["tool_calls"] * 2}, ANSWER, line=5)
    good = tool_row(CALL, ANSWER)
    kept, rejected = data.drop_unsupported_tools([both, good, two], tokenizer)
    assert kept == [good]
    assert [r.line for r in rejected] == [4, 5]
    assert rejected[0].reason.startswith("has text next to a tool call, and the model")
    assert rejected[1].reason.endswith("rejects these messages (one call a turn)")


def test_an_empty_list_of_calls_is_no_call():
    """Arrow fills missing columns: Llama 3.1's template would take it for a call."""
    tokenizer = with_tools("llama31")
    chat = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "So."}]
    expected = data.trained_tokens(chat, tokenizer)
    for empty in ([], None):
        other = [{**turn, "tool_calls": empty} for turn in chat]
        assert data.trained_tokens(other, tokenizer) == expected


def test_tokenize_trains_on_rows_with_tools_and_weights(capsys):
    tokenizer = with_tools("hermes")
    rows = [tool_row(CALL, ANSWER), tool_row(CALL, {**ANSWER, "weight": 0})]
    tokens = data.tokenize(rows, tokenizer)
    assert [decoded(t, tokenizer) for t in tokens] == [
        TRAINED["hermes"],
        TRAINED["hermes"][:1],
    ]
    lengths = data.token_lengths(rows, tokenizer)
    assert lengths == [len(t["input_ids"]) for t in tokens]
