"""Calibration: worked examples, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import evaluation

PREDICTION = st.tuples(st.floats(0, 1), st.booleans())


def test_calibration_error_of_a_worked_example():
    """Two bins: 0.6 on average with 1 of 2 right, 0.9 with 2 of 2."""
    sure, right = [0.9, 0.5, 0.9, 0.7], [True, False, True, True]
    found = evaluation.calibration(sure, right, bins=2)
    assert found == [pytest.approx((0.6, 0.5)), pytest.approx((0.9, 1.0))]
    error = evaluation.calibration_error(sure, right, bins=2)
    assert error == pytest.approx((0.1 + 0.1) / 2)


def test_more_bins_than_predictions():
    assert len(evaluation.calibration([0.5, 0.7], [True, False], bins=5)) == 2


def test_calibration_error_without_predictions_is_refused():
    with pytest.raises(ValueError, match="no predictions"):
        evaluation.calibration_error([], [])


def test_calibration_of_lists_of_unequal_length_is_refused():
    with pytest.raises(ValueError, match="1 probabilities for 2 predictions"):
        evaluation.calibration([0.5], [True, False])


@given(st.lists(PREDICTION, min_size=1, max_size=60))
def test_calibration_error_is_at_least_that_of_the_mean(predictions):
    """With bins of equal size, the error is at least |mean probability - share|."""
    predictions = predictions[: max(1, len(predictions) // 5 * 5)]
    sure, right = map(list, zip(*predictions, strict=True))
    error = evaluation.calibration_error(sure, right)
    mean = abs(sum(sure) - sum(right)) / len(sure)
    if len(sure) % min(5, len(sure)) == 0:
        assert mean - 1e-9 <= error <= 1
