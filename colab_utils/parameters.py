"""The parameters of a notebook: read however they were typed, and checked at once.

A form field of Colab writes its value into the code: a text field writes text, and a
number field writes 3, 3.0 or None. Papermill passes any of these.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)
QUOTES = ('""', "''", "``", "“”", "‘’")


def clean(value: object) -> str:
    """Return a text field without the spaces and quotes around it; None is "".

    >>> clean(' "my-data" '), clean(None)
    ('my-data', '')
    """
    text = "" if value is None else str(value).strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    return text


def path(text: str | Path) -> Path:
    """Return a path that was typed; a leading ~ is the home folder.

    Raises ValueError for a path that no file system has: a part of it is longer than
    255 bytes, it holds a NUL or half of a character, or its home is that of nobody.
    """
    try:
        found = Path(text).expanduser()
        longest = max((len(os.fsencode(part)) for part in found.parts), default=0)
        problem = f"a part of it has {longest} bytes" if longest > 255 else ""
    except RuntimeError:
        problem = f"there is no user {Path(text).parts[0][1:]}"
    except UnicodeEncodeError:
        problem = "it holds half of a character"
    if "\0" in str(text):
        problem = "it holds a NUL character"
    if problem:
        raise ValueError(f"{str(text)[:200]!r} can't be a path: {problem}.")
    return found


def is_auto(value: object) -> bool:
    """Return whether a field is empty or says "auto", in any spelling."""
    return clean(value).lower() in ("", "auto")


def number(name: str, value: object, low: Number, high: Number) -> Number:
    """Return the number in a field, an int if the bounds are integers.

    Raises ValueError with the parameter's name, its value and the allowed range.

    >>> number("RANK", "16.0", 1, 1024), number("EPOCHS", " 3 ", 0.01, 1000.0)
    (16, 3.0)
    """
    return _number(name, value, low, high, "")


def number_or_auto(
    name: str, value: object, low: Number, high: Number
) -> Number | Literal["auto"]:
    """Return the number in a field as `number` does, or "auto" if `is_auto`.

    >>> number_or_auto("SHARE", "2e-1", 0.0, 1.0), number_or_auto("SHARE", "", 0.0, 1.0)
    (0.2, 'auto')
    """
    if is_auto(value):
        return "auto"
    return _number(name, value, low, high, ' or "auto"')


def _number(name: str, value: object, low: Number, high: Number, more: str) -> Number:
    whole = isinstance(low, int)
    found = _parse(value, whole)
    if found is not None and low <= found <= high:
        return type(low)(found)
    shown = f"{name} = {value!r}" if clean(value) else f"{name} is empty"
    kind, form = ("a whole number", ",") if whole else ("a number", "g")
    comma = " Write a decimal point, not a comma." if "," in clean(value) else ""
    raise ValueError(
        f"{shown}, but it must be {kind} from {low:{form}} to {high:{form}}{more}."
        f"{comma}"
    )


def _parse(value: object, whole: bool) -> int | float | None:
    """Return the number that a value stands for, or None."""
    text = clean(value)
    try:
        return int(text)  # exact, also above 2**53
    except ValueError:
        pass
    try:
        found = float(text)
    except ValueError:
        return None
    return None if whole and not found.is_integer() else found


def choice(name: str, value: object, *choices: str) -> str:
    """Return the choice in a field; empty is "auto" if that is a choice.

    Raises ValueError with the parameter's name, its value and the choices.

    >>> choice("METHOD", "'lora'", "qlora", "lora", "full")
    'lora'
    """
    text = "auto" if "auto" in choices and is_auto(value) else clean(value)
    if text not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name} = {value!r}, but it must be one of {known}.")
    return text
