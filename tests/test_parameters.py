"""An error about a parameter has its name, its value and the allowed values."""

from __future__ import annotations

import pytest

from colab_utils import parameters


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((0, 1, 1024), "X = 0, but it must be a whole number from 1 to 1024."),
        ((2.5, 1, 9), "X = 2.5, but it must be a whole number from 1 to 9."),
        ((True, 1, 9), "X = True, but it must be a whole number from 1 to 9."),
        (("10%", 0.0, 1.0), "X = '10%', but it must be a number from 0 to 1."),
        (("foo", "a", "b"), "X = 'foo', but it must be one of 'a', 'b'."),
    ],
)
def test_check_range_and_check_choice_name_the_parameter(rule, message):
    is_choice = isinstance(rule[1], str)
    check = parameters.check_choice if is_choice else parameters.check_range
    with pytest.raises(ValueError) as error:
        check(X=rule)
    assert str(error.value) == message


def test_check_range_and_check_choice_accept_allowed_values():
    parameters.check_range(A=(1, 1, 9), B=(0.5, 0.0, 1.0), C=(1, 0.0, 1.0))
    parameters.check_choice(D=("a", "a", "b"))
