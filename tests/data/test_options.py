"""The options of a multiple-choice question stand in its prompt."""

from __future__ import annotations

import pytest

from colab_utils import data
from colab_utils.data.shapes import formats, options

PROMPT = "Which tree?\n\nA. oak\nB. elm\nC. ash"
TREES = ["oak", "elm", "ash"]


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ({"choices": TREES, "answer": 1}, "B"),
        ({"choices": TREES, "answer": "B"}, "B"),
        ({"choices": TREES, "answer": "(b)"}, "B"),
        ({"choices": TREES, "answer": "elm"}, "elm"),
        ({"choices": TREES, "answer": [2]}, "C"),
        ({"choices": ["A) oak", "B) elm", "C) ash"], "correct": "B"}, "B"),
        ({"choices": "['oak' 'elm' 'ash']", "answer": "1"}, "B"),
        ({"options": {"A": "oak", "B": "elm", "C": "ash"}, "answer": "elm"}, "elm"),
        ({"choices": {"text": TREES, "label": ["A", "B", "C"]}, "answerKey": "C"}, "C"),
        (
            {
                "options": [
                    {"label": a, "text": b} for a, b in zip("ABC", TREES, strict=True)
                ],
                "answer": "A",
            },
            "A",
        ),
        ({"A": "oak", "B": "elm", "C": "ash", "D": "", "answer": "B"}, "B"),
        ({"opa": "oak", "opb": "elm", "opc": "ash", "cop": 0}, "A"),
        ({"option_a": "oak", "option_b": "elm", "option_c": "ash", "label": "0"}, "A"),
        ({"endings": TREES, "label": "2"}, "C"),
    ],
)
def test_options_stand_in_the_prompt(raw, answer):
    messages = data.to_messages({"question": "Which tree?", **raw})
    assert [turn["content"] for turn in messages] == [PROMPT, answer]


def test_empty_options_are_refused():
    with pytest.raises(data.BadRow, match="its options are empty"):
        data.to_row({"question": "Which?", "choices": ["", " "], "answer": "A"}, 1)


def test_numbered_options_keep_their_numbers():
    raw = {"question": "Which?", "option1": "oak", "option2": "elm", "answer": "2"}
    asked, answer = data.to_messages(raw)
    assert asked["content"] == "Which?\n\n1. oak\n2. elm"
    assert answer["content"] == "2"


def test_options_in_one_text_are_kept_as_they_are():
    raw = {"question": "Which?", "options": "A) oak B) elm", "answer": "A"}
    assert data.to_messages(raw)[0]["content"] == "Which?\n\nA) oak B) elm"


def test_an_option_that_begins_as_a_letter_is_kept():
    raw = {"question": "Which?", "choices": ["a worm", "B. cereus"], "answer": "B"}
    assert data.to_messages(raw)[0]["content"] == "Which?\n\nA. a worm\nB. B. cereus"


def test_an_index_that_becomes_a_letter_is_counted():
    reader = formats.RowReader()
    reader.read({"question": "Which?", "choices": TREES, "answer": 0}, 1)
    reader.read({"question": "Which?", "choices": ["2", "0"], "answer": "0"}, 2)
    assert reader.tally().repairs == {options.INDEX: 1}
    assert reader.tally().unused == {}
