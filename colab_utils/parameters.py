"""The parameters of a notebook: checked before anything is computed."""

from __future__ import annotations

from typing import Any


def check_range(**given: tuple[Any, float, float]) -> None:
    """Check numeric parameters: NAME=(value, lowest, highest).

    If the bounds are integers, the value must be one. Raises ValueError with the
    parameter's name, its value and the allowed range.

    >>> check_range(RANK=(16, 1, 1024), EPOCHS=(0.5, 0.01, 1000.0))
    """
    for name, (value, low, high) in given.items():
        fraction = isinstance(low, float)
        kind = (int, float) if fraction else int
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not (good and low <= value <= high):
            number = "a number" if fraction else "a whole number"
            raise ValueError(
                f"{name} = {value!r}, but it must be {number} from {low:g} to {high:g}."
            )


def check_choice(**given: tuple[Any, ...]) -> None:
    """Check parameters that are one of several values: NAME=(value, *choices).

    Raises ValueError with the parameter's name, its value and the choices.

    >>> check_choice(METHOD=("qlora", "qlora", "lora", "full"))
    """
    for name, (value, *choices) in given.items():
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"{name} = {value!r}, but it must be one of {known}.")
