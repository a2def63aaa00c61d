"""Fingerprints: numbers that stand for texts, computed for many texts at once."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colab_utils.data.repeats import fingerprints
from colab_utils.data.repeats.hashes import word_hash
from colab_utils.data.repeats.marks import BRACKETS, MARK, START, marks_of

SIGNED = st.text(
    st.one_of(
        st.sampled_from("-.<>=!&|+#@*/%^~:;?'\"`\\([{}])$€£¥₹☀➿😀"),
        st.sampled_from("Cé5_, \n\x1e\0\ud800"),
        st.characters(),
    ),
    max_size=12,
)


def signs_of(text: str) -> tuple[str, list[str]]:
    return marks_of(text), BRACKETS.findall(text)


@given(st.lists(SIGNED, min_size=1, max_size=5))
@example(["7 * -.5", "-5", "C++", "C+", ".top", r"\D"])
@example(["a - b. C", "", "€", "I'm !x && ||"])
@settings(deadline=None, max_examples=3 * settings.default.max_examples // 2)
def test_what_is_next_to_signs_has_the_signs_of_the_text(texts):
    joined = fingerprints._join(texts)
    near = dict(fingerprints._near_signs(joined))
    whole = joined.split(fingerprints.END)[1:-1]
    for i, text in enumerate(whole):
        assert signs_of(near.get(i, "")) == signs_of(text)


@given(SIGNED)
@settings(deadline=None, max_examples=3 * settings.default.max_examples)
def test_the_first_characters_of_marks_are_all_that_a_mark_begins_with(text):
    slow = re.compile(MARK.pattern.removeprefix(START))
    assert MARK.findall(text) == slow.findall(text)


@given(st.lists(st.tuples(SIGNED, SIGNED), min_size=1, max_size=5))
@example([("What is 7 - 2?", "5"), ("", "the C++ mill"), ("Who?", "")])
@example([("", "")])
@settings(deadline=None, max_examples=3 * settings.default.max_examples // 2)
def test_with_prompts_gives_the_fingerprints_of_rows_without_answers(rows):
    expected = fingerprints.fingerprint([(prompt, "") for prompt, _ in rows])
    both = fingerprints.with_prompts(rows)
    for found, made in zip(
        both, (fingerprints.fingerprint(rows), expected), strict=True
    ):
        for one, other in zip(found.columns(), made.columns(), strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 63, 64, 65, 200, 5000])
def test_long_words_are_hashed_as_word_hash(size):
    word, other = "xy" * size, "xy" * size + "c"
    words = [word[:size], other[-size:]]
    found = fingerprints.fingerprint([(f"{words[0]}, {words[1]}", "zebra")])
    assert found.words.tolist() == sorted({*map(word_hash, words), word_hash("zebra")})
