"""Duplicates, compared with brute force."""

from __future__ import annotations

import pytest
from helpers.rows import row, similar_texts, without_near_duplicates
from hypothesis import given, settings

from colab_utils import data


def test_normalize_and_shingles():
    assert data.normalize("Hello,  World!") == "hello world"
    assert data.normalize("ﬁne ＡＢＣ Straße") == "fine abc strasse"
    assert data.normalize(" ?! ") == "?!"
    assert data.normalize("C# or C++?") == "c# or c++"
    assert data.shingles("To be, or") == {"to be", "be or"}
    assert data.shingles("One") == {"one"}
    assert data.shingles("??") != data.shingles("!!")
    assert data.shingles("") == {""}


def test_drop_exact_keeps_the_first():
    rows = [
        row("a", line=1),
        row("b", line=2),
        row("a", line=3),
        row("a", "no", line=4),
    ]
    kept, rejected = data.drop_exact(rows)
    assert [r["line"] for r in kept] == [1, 2, 4]
    assert [(r.line, r.reason) for r in rejected] == [(3, "repeats line 1")]


def brute_force(texts: list[str], threshold: float) -> list[int]:
    """Compare every pair; return the first text reachable over similar pairs."""
    sets = [data.shingles(text) for text in texts]
    near = [[len(a & b) >= threshold * len(a | b) for b in sets] for a in sets]
    first = []
    for i in range(len(texts)):
        reached, todo = {i}, [i]
        while todo:
            new = [j for j, is_near in enumerate(near[todo.pop()]) if is_near]
            todo += [j for j in new if j not in reached]
            reached.update(new)
        first.append(min(reached))
    return first


@pytest.mark.slow
@given(similar_texts())
@settings(deadline=None, max_examples=400)
def test_near_duplicates_match_brute_force(texts):
    assert data.near_duplicates(texts) == brute_force(texts, 0.85)


def test_near_duplicates_linked_by_a_third_text():
    words = [f"w{n}" for n in range(60)]
    first, middle, last = (" ".join(words[k : k + 50]) for k in (0, 3, 6))
    assert data.near_duplicates([first, last]) == [0, 1]
    assert data.near_duplicates([first, last, "w1 w2", middle]) == [0, 0, 2, 0]


def test_near_duplicates_below_the_threshold():
    template = " ".join(f"w{n}" for n in range(150))
    texts = [
        f"{template} " + " ".join(f"x{n}y{k}" for k in range(20)) for n in range(200)
    ]
    assert data.near_duplicates(texts) == list(range(200))
    similar = [f"{template} {n}" for n in range(200)]
    assert set(data.near_duplicates(similar)) == {0}


def test_near_duplicates_of_question_and_answer():
    long = "which of these two words do you think is the one that I was thinking of"
    rows = [
        row(long, "this one"),
        row(long.upper() + "?", "This one."),
        row(long, "no"),
    ]
    assert without_near_duplicates(rows) == [rows[0], rows[2]]
