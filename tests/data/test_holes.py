"""Holes in texts: the parts always join to the text."""

from __future__ import annotations

import random
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.shapes import holes

CODE = "def f(x):\n    y = x\n\n    if y:\n        y += 1\n    return y\n"
WAYS = {
    "words": holes.words,
    "lines": holes.lines,
    "several lines": lambda text, draw: holes.lines(text, draw, 2, 4),
    "characters": holes.characters,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@given(
    text=st.text(st.sampled_from("ab \n\t\ré") | st.characters()), seed=st.integers()
)
def test_parts_join_to_the_text(way, text, seed):
    try:
        hole = way(text, random.Random(seed))
    except data.BadRow:
        return
    assert "".join(hole) == text and hole.middle


def test_words_begin_with_their_space():
    found = {holes.words("one two three", random.Random(i), 2) for i in range(60)}
    assert {hole.middle for hole in found} == {
        *("one", " two", " three", "one two", " two three")
    }


def test_lines_are_neither_first_nor_blank():
    found = {holes.lines(CODE, random.Random(i)) for i in range(60)}
    assert {h.middle for h in found} == {"y = x", "if y:", "y += 1", "return y"}
    assert all(h.suffix.startswith("\n") for h in found)
    assert all(h.prefix.endswith("    ") for h in found)


def test_lines_of_a_short_text():
    with pytest.raises(data.BadRow, match="1 lines has no hole of 1 lines"):
        holes.lines("one line", random.Random(0))


def test_functions_as_at_the_top_level():
    method = textwrap.indent(CODE, "    ")
    source = (
        f"import os\nclass A:\n    @property\n{method}\n{CODE}\ndef g():\n    pass\n"
    )
    assert holes.functions(source) == [CODE, CODE]
    assert holes.functions("def broken(:\n") == []
    assert holes.functions("\0") == []
