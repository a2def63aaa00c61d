"""The rules that look at all rows first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.curation.dataset_rules import (
    Disagreement,
    Formats,
    Truncation,
    format_of,
)

SENTENCE = "The city is large because it has a deep harbor"


def make(answer: str, prompt: str = "Why?", **more) -> data.Row:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns, "line": 1, **more}


@pytest.mark.parametrize(("ended", "expected"), [(8, True), (7, False)])
def test_truncation_expects_ends_where_80_percent_have_them(ended, expected):
    rows = [make(f"{SENTENCE}.")] * ended + [make(SENTENCE)] * (10 - ended)
    rule = Truncation.of(rows)
    assert rule.sentences is expected
    assert bool(rule(make(SENTENCE))) is expected
    assert rule(make(f"{SENTENCE}.")) is None
    assert rule(make(f"{SENTENCE} and the")) is not None


def test_truncation_does_not_judge_short_answers_and_code():
    rule = Truncation()
    for answer in ("Paris", "for i in range(10) if i % 2 == 0 return i", "a and"):
        assert rule(make(answer)) is None


def test_formats_keep_the_usual_one():
    plain, other = make("Paris"), make('{"a": 1}')
    assert Formats.of([plain] * 6 + [other] * 4)(other) is not None
    assert Formats.of([plain] * 4 + [other] * 6)(other) is None
    assert Formats.of([plain] * 4 + [other] * 6)(plain) is not None
    mixed = Formats.of([plain, other, make("ROME"), make("Answer: a")])
    assert (mixed.usual, mixed(other)) == ("", None)
    assert Formats.of([]).usual == ""


def test_format_of_broken_json_is_plain_text():
    assert format_of('{"a": ') == format_of("{curly}") == "plain text"
    assert format_of("[" * 100_000 + "]" * 100_000) == "plain text"


def test_disagreement_trusts_the_majority_only():
    rows = [make(a, "Who?") for a in ("Ann", "ann.", "Bob")]
    rows += [make(a, "Where?") for a in ("here", "there")] + [make("x", "When?")]
    kept, rejected = data.filter_rows(rows, [Disagreement.of(rows)])
    assert [data.answer_of(row) for row in kept] == ["Ann", "ann.", "x"]
    assert "answer 'ann'" in rejected[0].reason
    assert {one.reason for one in rejected[1:]} == {
        "disagreement: the rows that ask the same have tied answers"
    }


def test_disagreement_uses_the_key():
    rows = [make(a, q, group="FR") for a, q in [("a", "1"), ("a", "2"), ("b", "3")]]
    rule = Disagreement.of(rows, lambda row: row["group"])
    assert [bool(rule(row)) for row in rows] == [False, False, True]
    assert rule(make("b", group="new")) is None


@given(st.lists(st.tuples(st.sampled_from("qr"), st.sampled_from("abc"))))
def test_disagreement_agrees_with_counting(pairs):
    rows = [make(answer, prompt) for prompt, answer in pairs]
    kept, _ = data.filter_rows(rows, [Disagreement.of(rows)])
    expected = []
    for prompt, answer in pairs:
        votes = Counter(a for p, a in pairs if p == prompt)
        if all(votes[answer] > n for a, n in votes.items() if a != answer):
            expected.append((prompt, answer))
    assert [(data.prompt_of(r), data.answer_of(r)) for r in kept] == expected
