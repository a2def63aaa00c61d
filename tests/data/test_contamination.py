"""Rows that overlap with a test set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.curation.contamination import COMMON, Contamination


def make(prompt: str, answer: str = "yes", line: int = 7) -> data.Row:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns, "line": line}


LONG = " ".join(f"w{n}" for n in range(30))


def test_contamination_shows_the_common_words_and_the_line():
    rule = Contamination.of([make(LONG)])
    words = LONG.split()[10:23]
    reason = rule(make(f"Look: {' '.join(words).upper()}!"))
    assert reason == f"contamination: test row 7 has {' '.join(words)!r}"
    assert rule(make(" ".join(LONG.split()[10:22]))) is None  # 12 words


def test_contamination_finds_short_questions_as_a_whole():
    rule = Contamination.of([make("What is the capital of Chad?")])
    assert rule(make("Tell me: what is the  capital of Chad"))
    assert rule(make("What is the capital of Mali?")) is None
    assert rule(make("What is the capital of")) is None


def test_contamination_looks_at_answers():
    rule = Contamination.of([make("Hi", LONG)])
    assert rule(make("Hi", LONG)) and rule(make(LONG, "yes"))
    assert rule(make("Hi", "yes")) is None


def test_contamination_ignores_templates():
    template = "Below is an instruction that describes a task. Answer it in one word: "
    test = [make(f"{template}{n} {n} {n} {n}") for n in range(COMMON + 1)]
    rule = Contamination.of(test)
    assert rule(make(f"{template}what?")) is None
    assert rule(test[3]) is not None


def test_contamination_needs_words_to_look_for():
    with pytest.raises(ValueError, match="No text of the 2 test rows"):
        Contamination.of([make("Hi"), make("What is")])


@given(
    st.lists(st.sampled_from("abcd"), min_size=4, max_size=12),
    st.lists(st.sampled_from("abcd"), max_size=20),
    st.integers(4, 8),
)
def test_contamination_agrees_with_search(test, text, size):
    """The reference looks for each run as text."""
    rule = Contamination.of([make(" ".join(test))], words=size)
    size = min(size, len(test))
    runs = [" ".join(test[i : i + size]) for i in range(len(test) - size + 1)]
    found = any(f" {run} " in f" {' '.join(text)} " for run in runs)
    assert bool(rule(make(" ".join(text), ""))) == found
