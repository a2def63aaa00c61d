"""Row lengths as in training; long rows and rows with special tokens."""

from __future__ import annotations

import pytest
from helpers.rows import row
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from helpers.tool_templates import LOOK, call, tool_row, with_tools

from colab_utils import data


def test_token_lengths_are_those_of_training(tokenizer):
    rows = [row(f"What is {n}?", "the answer " * n) for n in (1, 600, 3)]
    lengths = data.token_lengths(rows * 200, tokenizer)
    ids = [tokenizer.apply_chat_template(r["messages"])["input_ids"] for r in rows]
    assert lengths == [len(i) for i in ids] * 200


def test_drop_long_reports_the_length():
    rows = [row(f"question {n}", line=n) for n in (4, 5, 6)]
    kept, rejected = data.drop_long(rows, [10, 11, 9], 10)
    assert kept == [rows[0], rows[2]]
    assert [r.as_dict() for r in rejected] == [
        {
            "line": 5,
            "reason": "too long: 11 tokens, the limit is 10",
            "start": "question 5",
        }
    ]


def test_drop_long_all_rows_too_long():
    with pytest.raises(ValueError, match=r"all 2 .*longer than 5.*shortest has 8"):
        data.drop_long([row("a"), row("b")], [9, 8], 5)


def test_drop_special_tokens(tokenizer):
    rows = [row("What ends a <s>entence?"), row("fine", line=2), row("a", "b</s>c")]
    kept, rejected = data.drop_special_tokens(rows, tokenizer)
    assert [r["line"] for r in kept] == [2]
    assert [r.reason for r in rejected] == [
        "contains the special token <s>",
        "contains the special token </s>",
    ]


@pytest.mark.parametrize(
    ("kind", "template", "token"),
    [("llama3", "llama3", "<|eot_id|>"), ("gemma", "gemma3", "<start_of_turn>")],
)
def test_drop_special_tokens_without_a_role(kind, template, token):
    """`all_special_tokens` has only those with a role, such as EOS."""
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = TEMPLATES[template]
    assert token not in {tokenizer.bos_token, tokenizer.unk_token, tokenizer.pad_token}
    rows = [row("fine"), row("a", f"b{token}c", line=2)]
    kept, rejected = data.drop_special_tokens(rows, tokenizer)
    assert kept == rows[:1]
    assert [r.reason for r in rejected] == [f"contains the special token {token}"]


def test_token_lengths_are_those_of_the_trained_tokens():
    tokenizer = make_tokenizer("gemma")
    tokenizer.chat_template = TEMPLATES["gemma2"]  # takes no system message
    rows = [row("Why?", "Because.", line=1), row("And?", "So.", line=2)]
    rows[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    tokens = data.tokenize(rows, tokenizer)
    assert data.token_lengths(rows, tokenizer) == [len(t["input_ids"]) for t in tokens]


PROMPT = [{"role": "user", "content": "Why?"}]
GOOD, BAD = ([{"role": "assistant", "content": t}] for t in ("So.", "N</s>o."))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a</s>b"},
        {"text": "a</s>b", "label": "x"},
        {"prefix": "a</s>", "middle": "b", "suffix": "c"},
        {"prefix": "a", "middle": "b</s>", "suffix": "c"},
        {"prefix": "a", "middle": "b", "suffix": "</s>c"},
        {"prefix": "a", "middle": "<fim_middle>", "suffix": "c"},
        {"prompt": PROMPT, "chosen": BAD, "rejected": GOOD},
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"prompt": BAD, "chosen": GOOD, "rejected": GOOD},
    ],
)
def test_drop_special_tokens_of_each_kind(tokenizer, row):
    good = [
        {"text": "</ s>", "line": 1},
        {"prefix": "</", "middle": "s>", "suffix": ""},
    ]
    rows = [good[0], {**row, "line": 2}, {**good[1], "line": 3}]
    kept, rejected = data.drop_special_tokens(rows, tokenizer)
    assert [r["line"] for r in kept] == [1, 3]
    assert rejected[0].reason.startswith("contains the special token <")


def test_drop_special_tokens_keeps_the_marks_of_the_middle_in_other_kinds(tokenizer):
    rows = [{"text": "<fim_middle>", "line": 1}]
    assert data.drop_special_tokens(rows, tokenizer) == (rows, [])


END = "<|im_end|>"


@pytest.mark.parametrize(
    ("calls", "tools"),
    [
        ([call({"town": f"a{END}"})], [LOOK]),
        ([call({"town": [{"deep": END}]})], [LOOK]),
        ([call({END: 1})], [LOOK]),
        ([call(f'{{"town": "{END}"}}')], [LOOK]),
        ([call(f'{{"town": "{END[:-1]}\\u003e"}}')], [LOOK]),  # > as JSON escapes it
        ([call({}, name=END)], [LOOK]),
        ([call({})], [LOOK, {"type": "function", "function": {"description": END}}]),
    ],
)
def test_drop_special_tokens_of_calls_and_tools(calls, tools):
    tokenizer = with_tools("hermes")
    good = tool_row({"content": None, "tool_calls": [call({"town": "Lima"})]}, {})
    good["messages"][-1]["content"] = "So."
    bad = {**good, "tools": tools, "line": 2, "messages": [*good["messages"]]}
    bad["messages"][1] = {**bad["messages"][1], "tool_calls": calls}
    kept, rejected = data.drop_special_tokens([good, bad], tokenizer)
    assert kept == [good]
    assert [r.reason for r in rejected] == [f"contains the special token {END}"]
