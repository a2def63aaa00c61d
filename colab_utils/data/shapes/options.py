"""Write the options of a multiple-choice question into its prompt."""

from __future__ import annotations

import re
import string
from typing import Any

from colab_utils.data.schema import BadRow
from colab_utils.data.shapes import values
from colab_utils.data.shapes.column_names import compact

Options = list[tuple[str, str]]  # the letter of an option, and its text
LABELS = ("label", "key", "letter", "id")  # keys of an option that is an object
TEXTS = ("text", "value", "content", "option")
INDEX = "the index of an option written as its letter: 0 is the first"


def options_of(cells: dict[Any, Any]) -> Options:
    """Return the options in the cells of one column, or of a column for each.

    Files have a list of texts, {"A": text}, {"label": ["A"], "text": [text]}, a list of
    objects with label and text, or text, which is returned as one option without a
    letter. Raises BadRow if all are empty.
    """
    if len(cells) > 1:
        found = [(compact(name)[-1].upper(), cell) for name, cell in cells.items()]
    else:
        ((column, cell),) = cells.items()
        found = _of_cell(values.objects(cell, column))
    filled = [(letter, text) for letter, text in found if not values.is_blank(text)]
    made = [
        (values.text(letter, "option") if letter else "", values.text(text, "option"))
        for letter, text in filled
    ]
    if not made:
        raise BadRow("its options are empty")
    bare = [re.sub(rf"^\(?{re.escape(a)}[).:]\s*", "", text) for a, text in made]
    if all(b and b != text for b, (_, text) in zip(bare, made, strict=True)):
        return [(a, b) for b, (a, _) in zip(bare, made, strict=True)]
    return made


def _of_cell(cell: Any) -> list[tuple[Any, Any]]:
    if isinstance(cell, dict):
        return list(cell.items())
    if not isinstance(cell, list):
        return [("", cell)]
    if all(isinstance(one, dict) for one in cell):
        letters = [_first(one, LABELS) for one in cell]
        cell = [_first(one, TEXTS) for one in cell]
        if all(letters):
            return list(zip(letters, cell, strict=True))
    return list(zip(string.ascii_uppercase, cell, strict=False))


def _first(one: dict[Any, Any], names: tuple[str, ...]) -> Any:
    return next((one[name] for name in names if name in one), None)


def as_text(options: Options) -> str:
    """Return the options as the lines of a prompt: `A. oak`."""
    return "\n".join(
        f"{letter}. {text}" if letter else text for letter, text in options
    )


def answer_of(value: object, options: Options, notes: list[str]) -> object:
    """Return the answer as the letter of an option, or as it is.

    It may be a letter, an index from 0, or the text of an option.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    said = str(value).strip().removesuffix(".0")
    letters = [letter for letter, _ in options]
    for letter in letters:
        if said.strip("().: ").lower() == letter.lower():
            return letter
    if any(said == text for _, text in options):
        return value
    if said.isdecimal() and int(said) < len(letters) and letters[int(said)]:
        notes.append(INDEX)
        return letters[int(said)]
    return value
