"""Rows of one kind become rows of another where that makes sense."""

from __future__ import annotations

import pytest
from helpers import shapes
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data import schema
from colab_utils.data.shapes import converting

PAIR = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [USER], "line": 3}
LABELS = {"line": 3, "group": "g", "category": "c"}


@pytest.mark.parametrize(
    ("row", "kind", "made"),
    [
        (PAIR, "instruction", {"messages": DIALOG}),
        ({"text": "Who?", "label": "Me."}, "instruction", {"messages": DIALOG}),
        ({"messages": DIALOG}, "classification", {"text": "Who?", "label": "Me."}),
        ({"text": "a", "label": "b"}, "completion", {"text": "a"}),
        (
            {"prefix": "a ", "middle": "b", "suffix": " c"},
            "completion",
            {"text": "a b c"},
        ),
        ({"messages": DIALOG}, "instruction", {"messages": DIALOG}),
    ],
)
def test_convert_keeps_line_and_labels(row, kind, made):
    assert converting.convert(row | LABELS, kind) == made | LABELS


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        (
            {"messages": DIALOG},
            "completion",
            "kind instruction can't become one of the",
        ),
        ({"text": "a"}, "instruction", "kind completion can't become one of the kind"),
        (
            {"messages": DIALOG * 2},
            "classification",
            "only one question with one answer",
        ),
        ({"messages": [SYSTEM, *DIALOG]}, "classification", "only one question with"),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [shapes.CALL]}]},
            "classification",
            "a tool call can't become a label",
        ),
        ({"text": "short"}, "fill-in-the-middle", "shorter than 20 characters"),
    ],
)
def test_convert_says_why_not(row, kind, reason):
    with pytest.raises(data.BadRow, match=reason):
        converting.convert(row, kind)


@given(st.text(min_size=20), st.integers(0, 9))
@settings(deadline=None)
def test_cut_middle_any_text(text, seed):
    row = {"text": text, "line": 7}
    try:
        made = converting.cut_middle(row, seed)
    except data.BadRow:
        assert len(text.split()) < 20  # a longer text always has a middle
        return
    shapes.check(made)
    assert made["prefix"] + made["middle"] + made["suffix"] == text
    assert converting.cut_middle(row, seed) == made


def test_middles_are_whole_lines_or_words_and_spread_over_the_text():
    code = {"text": "".join(f"line {n}\n" for n in range(50)), "line": 1}
    made = converting.middles([code | {"group": "g"}], each=200)
    assert all(row["prefix"] == "" or row["prefix"].endswith("\n") for row in made)
    assert len(made) == 200 and made[0]["group"] == "g"
    starts = {len(row["prefix"]) for row in made}
    sizes = [row["middle"].count("\n") for row in made]
    # Both ends are drawn evenly, so the middle is a third of the text on average.
    assert len(starts) > 30 and 14 < sum(sizes) / 200 < 20
    words = {"text": "one two three four five six seven", "line": 2}
    for row in converting.middles([words], each=20):
        parts = [row["prefix"], row["middle"], row["suffix"]]
        assert " ".join(" ".join(parts).split()) == words["text"]
    assert converting.middles([{"text": "short", "line": 3}]) == []


def test_middles_differ_by_line_and_seed():
    rows = [{"text": " ".join(map(str, range(60))), "line": n} for n in range(30)]
    first, second = (converting.middles(rows, seed=seed) for seed in (0, 1))
    assert len({row["middle"] for row in first}) > 20
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5
    assert converting.middles(rows, seed=1) == second


def answered(question: str, answer: str, line: int) -> data.Row:
    return data.to_row({"question": question, "answer": answer}, line)


def test_pair_takes_each_answer_once_in_order():
    good = [
        answered("q", "good", 1),
        answered("q", "best", 2),
        answered("p", "fine", 3),
    ]
    bad = [
        answered("q", "bad", 4),
        answered("q", "worse", 5),
        answered("o", "awful", 6),
    ]
    paired, alone = converting.pair(good, bad)
    texts = [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in paired]
    assert texts == [("good", "bad"), ("best", "worse")]
    assert [row["line"] for row in paired] == [1, 2]
    assert [row["line"] for row in alone] == [3, 6]
    assert converting.pair([answered("q", "a", 1)], [answered("q", "a", 2)])[0] == []


def test_pair_scored_takes_the_best_and_the_worst():
    scored = [
        (answered("q", a, n), s)
        for n, (a, s) in enumerate([("fine", 2.0), ("best", 3.0), ("bad", 1.0)])
    ]
    scored += [(answered("p", "alone", 9), 1.0)]
    scored += [(answered("o", "a", 10), 1.0), (answered("o", "b", 11), 1.0)]
    (row,) = converting.pair_scored(scored)
    assert schema.kind_of(row) == "preference" and row["line"] == 1
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (
        "best",
        "bad",
    )
