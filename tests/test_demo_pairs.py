"""Pairs of answers about the demo world."""

from __future__ import annotations

import random

import pytest

from colab_utils import data, demo
from colab_utils.demo import pairs

ROWS = demo.questions(wordings=1)
TRUTH = {(f["country"], a): f[a] for f in demo.facts() for a in demo.ATTRIBUTES}


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_pair_has_the_right_answer_and_a_worse_one(kind):
    draw, alike = random.Random(0), 0
    for row in ROWS[:300]:
        found = data.to_row(pairs.pair(row, kind, draw), 1)
        assert (found["group"], found["category"]) == (row["group"], kind)
        better, worse = (found[name][0]["content"] for name in ("chosen", "rejected"))
        (right, *more), (other, *rest) = (
            text.split(". ", 1) for text in (better, worse)
        )
        assert right == row["answer"] == TRUTH[row["group"], row["category"]]
        assert bool(more) == (kind == "right, long") and bool(rest) == (kind != "right")
        assert (other == right) == (kind == "short")
        assert kind == "short" or rest == more
        alike += len(better) == len(worse)
    assert (alike == 0) if kind == "short" else (alike > 200)


def test_pair_measures_the_length_as_asked():
    wide = pairs.pair(
        ROWS[0], "right", random.Random(0), lambda text: len(text.split())
    )
    words = [len(wide[name].split()) for name in ("chosen", "rejected")]
    assert words[0] == words[1]


def test_unasked_is_true_and_about_another_fact():
    draw = random.Random(0)
    for row in ROWS[:100]:
        text = pairs.unasked(row, draw)
        others = [
            TRUTH[row["group"], a] for a in demo.ATTRIBUTES if a != row["category"]
        ]
        assert text.startswith(". ") and row["group"] in text
        assert any(value in text for value in others)


def test_imperfect_has_the_shares_that_are_asked_for():
    draw = random.Random(0)
    found = [pairs.imperfect(row, draw) for row in ROWS]
    longs = sum(". " in row["answer"] for row in found) / len(ROWS)
    firsts = [row["answer"].split(". ")[0] for row in found]
    same = sum(a == row["answer"] for a, row in zip(firsts, ROWS, strict=True))
    assert longs == pytest.approx(0.7, abs=0.05)
    assert same / len(ROWS) == pytest.approx(0.8, abs=0.05)
