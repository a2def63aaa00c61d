"""The flaws that are planted in the demo's questions."""

from __future__ import annotations

from collections import Counter

import pytest

from colab_utils import demo
from colab_utils.demo import flaws

ROWS = demo.questions(wordings=4)[:1200]
TRUTH = {(f["country"], a): f[a] for f in demo.facts() for a in demo.ATTRIBUTES}


@pytest.fixture(scope="module")
def planted():
    return flaws.plant(ROWS, demo.questions()[:7], share=0.6, seed=3)


def test_plant_counts_each_flaw(planted):
    counts = Counter(flaw for _, flaw in planted)
    frequent = sum(counts[flaw] for flaw in flaws.FREQUENT)
    assert frequent / len(ROWS) == pytest.approx(0.6, abs=0.05)
    assert counts[flaws.WRONG] > counts[flaws.FORMAT] > counts[flaws.CUT] > 100
    assert all(counts[flaw] == flaws.TIMES for flaw in flaws.RARE)
    assert (counts[flaws.LEAKED], counts[flaws.COPY]) == (7, 300)


def test_plant_spoils_exactly_the_named_rows(planted):
    for row, flaw in planted:
        right = row["answer"] == TRUTH[row["group"], row["category"]]
        if flaw != flaws.COPY and flaw != flaws.FORMAT:
            assert right == (flaw in ("", flaws.LEAKED)), (row, flaw)
        if flaw == flaws.CUT:
            assert TRUTH[row["group"], row["category"]].startswith(row["answer"])


def test_plant_repeats_with_the_seed_and_changes_no_row(planted):
    before = [dict(row) for row in ROWS]
    assert flaws.plant(ROWS, demo.questions()[:7], 0.6, 3) == planted
    assert flaws.plant(ROWS, demo.questions()[:7], 0.6, 4) != planted
    assert before == ROWS
    assert {flaw for _, flaw in flaws.plant(ROWS, [], 0, 0)} == {
        "",
        flaws.COPY,
        *flaws.RARE,
    }
