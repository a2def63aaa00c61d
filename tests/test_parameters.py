"""A field is read however it was typed; an error says what is allowed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from colab_utils import parameters

SPACES = st.text(" \t\n\r", max_size=3)
PAIRS = st.lists(st.sampled_from(parameters.QUOTES), max_size=3)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def typed(text: str, spaces: str, pairs: list[str]) -> str:
    """Return `text` as a person may type it: with quotes and spaces around it."""
    for left, right in pairs:
        text = f"{left}{spaces}{text}{right}"
    return f"{spaces}{text}{spaces}"


@given(st.text(), SPACES, PAIRS)
def test_clean_removes_what_surrounds_a_text(text, spaces, pairs):
    plain = parameters.clean(text)
    assert parameters.clean(typed(plain, spaces, pairs)) == plain == plain.strip()
    assert plain in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ('""', ""),
        ("'", "'"),
        ("it's", "it's"),
        ('\'tis "x"', '\'tis "x"'),
        ("“my-data” ", "my-data"),
        ("a b", "a b"),
        (7, "7"),
    ],
)
def test_clean(value, text):
    assert parameters.clean(value) == text


@given(FLOATS, SPACES, PAIRS)
def test_number_reads_every_spelling_of_a_float(value, spaces, pairs):
    for written in (repr(value), f"{value:.17e}", f"{value:.17G}"):
        for given_value in (value, typed(written, spaces, pairs)):
            found = parameters.number("X", given_value, -math.inf, math.inf)
            assert type(found) is float and found == value


@given(st.integers(), SPACES, PAIRS)
def test_number_reads_every_spelling_of_an_integer(value, spaces, pairs):
    low, high = value - 1, value + 1
    spellings = [value, str(value), typed(str(value), spaces, pairs)]
    if abs(value) < 10**6:  # %e writes seven digits
        spellings += [float(value), str(float(value)), f"{value:e}"]
    for spelling in spellings:
        found = parameters.number("X", spelling, low, high)
        assert type(found) is int and found == value


@given(st.text() | st.none() | st.booleans() | FLOATS | st.integers())
def test_number_or_auto_returns_auto_a_number_in_range_or_a_sentence(value):
    try:
        found = parameters.number_or_auto("X", value, 0.1, 0.9)
    except ValueError as error:
        text = str(error)
        assert text.startswith(
            f"X = {value!r}, but it must be a number from 0.1 to 0.9"
        )
        assert ' or "auto".' in text
    else:
        assert found == "auto" or 0.1 <= found <= 0.9
        assert (found == "auto") == parameters.is_auto(value)


@given(SPACES, PAIRS, st.sampled_from(["auto", "Auto", "AUTO", ""]))
def test_number_or_auto_of_auto(spaces, pairs, word):
    assume(word or not (spaces and pairs))
    found = parameters.number_or_auto("X", typed(word, spaces, pairs), 0.0, 1.0)
    assert found == "auto"
    assert parameters.number_or_auto("X", None, 0.0, 1.0) == "auto"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((0, 1, 1024), "X = 0, but it must be a whole number from 1 to 1,024."),
        ((2.5, 1, 9), "X = 2.5, but it must be a whole number from 1 to 9."),
        (("2.5", 1, 9), "X = '2.5', but it must be a whole number from 1 to 9."),
        ((True, 1, 9), "X = True, but it must be a whole number from 1 to 9."),
        ((None, 1, 9), "X is empty, but it must be a whole number from 1 to 9."),
        (("nan", 0.0, 1.0), "X = 'nan', but it must be a number from 0 to 1."),
        ((math.inf, 1, 9), "X = inf, but it must be a whole number from 1 to 9."),
        (("10%", 0.0, 1.0), "X = '10%', but it must be a number from 0 to 1."),
        (
            ("0,3", 0.0, 1.0),
            "X = '0,3', but it must be a number from 0 to 1. Write a decimal point, "
            "not a comma.",
        ),
    ],
)
def test_number_names_the_parameter(rule, message):
    with pytest.raises(ValueError) as error:
        parameters.number("X", *rule)
    assert str(error.value) == message


def test_number_of_many_digits_is_exact():
    assert parameters.number("X", str(2**60 + 1), 0, 2**61) == 2**60 + 1
    with pytest.raises(ValueError, match="must be a whole number"):
        parameters.number("X", "9" * 5000, 0, 9)


@pytest.mark.parametrize("value", ["lora", " lora", '"lora"'])
def test_choice_reads_every_spelling(value):
    assert parameters.choice("X", value, "qlora", "lora") == "lora"


def test_choice_names_the_parameter():
    with pytest.raises(ValueError) as error:
        parameters.choice("X", "foo", "a", "b")
    assert str(error.value) == "X = 'foo', but it must be one of 'a', 'b'."
    with pytest.raises(ValueError, match="X = None"):
        parameters.choice("X", None, "a", "b")
    assert parameters.choice("X", None, "auto", "own") == "auto"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("~nosuchuser/data.jsonl", "there is no user nosuchuser"),
        ("data/" + "x" * 256, "a part of it has 256 bytes"),
        ("🦙" * 64, "a part of it has 256 bytes"),
        ("a\0b", "it holds a NUL character"),
        ("a\ud800b", "it holds half of a character"),
    ],
)
def test_path_that_no_file_system_has(text, problem):
    with pytest.raises(ValueError, match=rf"can't be a path: {problem}\.$"):
        parameters.path(text)


@given(st.text())
def test_path_of_any_text_can_be_asked_for(text):
    try:
        found = parameters.path(text)
    except ValueError as error:
        assert "can't be a path" in str(error)
        return
    found.exists()
    assert text.startswith("~") or found == Path(text)
