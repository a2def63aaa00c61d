"""Pairs of rows with a person's verdict: a repeat, or another row.

A false repeat loses a good row, so none is allowed. Each pair is judged alone, and in
the presence of rows that make its words known: a word is judged by how many rows have
it.
"""

from __future__ import annotations

import pytest
from helpers.verdicts import OTHERS, REPEATS

from colab_utils.data.repeats.engine import Repeats

Texts = tuple[str, str]


def first_of(texts: list[Texts]) -> list[int]:
    found = Repeats()
    found.add(texts)
    return found.first(lambda indices: [texts[i] for i in indices]).tolist()


def known(one: Texts) -> list[Texts]:
    """Return rows with the words of a row, each about something else."""
    return [
        (f"Entry {n}: {question} ({n * 7})", f"{answer} See entry {n + 3}.")
        for n, (question, answer) in enumerate([one] * 4, start=11)
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_another_row_is_kept(name):
    one, other = OTHERS[name]
    assert first_of([one, other]) == [0, 1]
    assert first_of([other, one]) == [0, 1]
    assert first_of([one, other, *known(one)])[1] == 1
    assert first_of([one, other, *known(other)])[1] == 1


@pytest.mark.parametrize("name", REPEATS)
def test_a_repeat_is_found(name):
    one, other = REPEATS[name]
    assert first_of([one, other]) == [0, 0]
    assert first_of([other, one]) == [0, 0]
    assert first_of([one, other, *known(one)])[:2] == [0, 0]
