"""Row lengths as in training; long rows and rows with special tokens."""

from __future__ import annotations

import pytest
from helpers.rows import row

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
