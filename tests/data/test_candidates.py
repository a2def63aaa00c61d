"""Pairs of rows that are compared: few of the rows of one template."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from colab_utils.data.repeats import candidates, engine
from colab_utils.data.repeats.hashes import mix

NAMES = ["".join(letters) for letters in itertools.permutations("abdel")]
SHARED = " ".join(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300))


@pytest.fixture
def compared(monkeypatch):
    """Return the list of all pairs of texts that are compared."""
    pairs = []
    compare = engine.Comparer.compare

    def noted(self, one, other):
        pairs.append({one, other})
        return compare(self, one, other)

    monkeypatch.setattr(engine.Comparer, "compare", noted)
    return pairs


def first_of(texts: list[tuple[str, str]]) -> list[int]:
    found = engine.Repeats()
    found.add(texts)
    return found.first(lambda indices: [texts[i] for i in indices]).tolist()


@pytest.mark.parametrize("shared", ["the old mill of the town", SHARED])
def test_rows_that_differ_in_one_word_of_many_are_not_compared(compared, shared):
    rows = [(f"Describe {shared} {name}.", "It is large.") for name in NAMES]
    assert first_of(rows) == list(range(len(rows)))
    assert compared == []


@pytest.mark.parametrize("shared", ["the old mill of the town", SHARED])
def test_rows_of_a_template_are_compared_if_they_differ_otherwise(compared, shared):
    rows = [(f"Describe {shared} {name}.", "It is large.") for name in NAMES]
    again = (f"Please describe {shared} {NAMES[50]}!", "It is large.")
    assert first_of([*rows, again])[-1] == 50
    assert {rows[50], again} in compared


def test_few_words_in_one_place_are_compared(compared):
    rows = [(f"Describe the old mill of {name}.", "Large.") for name in NAMES[:3]]
    first_of(rows)
    assert len(compared) == 3


def test_totals_count_the_other_words_of_rows():
    rows = [("red red mill", "the"), ("mill red", "")]
    found = engine.Repeats()
    found.add(rows)
    found._keep(2)
    made = found._rows(np.arange(2))
    left = engine.fingerprint([("red", "the")]).totals
    assert made.rests.tolist() == [int(left[0]), 0]
    assert made.totals[1] == mix(made.words[2:].astype(np.uint64)).sum()


@pytest.mark.parametrize("matrix", [1, 200, candidates.MATRIX])
def test_keep_rarest_keeps_the_rarest_words_in_their_order(monkeypatch, matrix):
    monkeypatch.setattr(candidates, "MATRIX", matrix)
    draw = np.random.default_rng(0)
    sizes = np.array([120, 3, 0, 60, 70, 49])
    table = draw.integers(0, 9, candidates.TABLE).astype(np.uint32)
    rows = [np.unique(draw.integers(0, 2**32, n, np.uint32)) for n in sizes]
    words, kept = candidates.keep_rarest(np.concatenate(rows), sizes, table)
    assert kept.tolist() == [48, 3, 0, 48, 48, 48]
    expected: list[int] = []
    for row in rows:
        rank = sorted(row.tolist(), key=lambda w: (table[w % candidates.TABLE], w))
        expected += sorted(rank[: candidates.KEPT])
    assert words.tolist() == expected
