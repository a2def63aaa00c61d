from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import evaluation


def test_interval_of_a_share_is_that_of_the_normal_approximation():
    values = [1.0] * 300 + [0.0] * 100
    found = evaluation.interval(values)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found == pytest.approx((0.75, 0.75 - half, 0.75 + half), abs=0.005)
    assert str(found) == "75% (71% to 79%)"


def test_interval_is_wider_if_values_of_a_group_are_equal():
    draw = random.Random(0)
    groups = [i // 10 for i in range(400)]
    of_group = [draw.random() < 0.5 for _ in range(40)]
    values = [float(of_group[group]) for group in groups]
    found, single = (evaluation.interval(values, some) for some in (groups, None))
    assert found.high - found.low > 2.5 * (single.high - single.low)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_contains_the_mean(values):
    mean, low, high = evaluation.interval(values)
    assert min(values) - 1e-9 <= low <= mean + 1e-9 <= high + 2e-9 <= max(values) + 3e-9


def test_interval_without_values_is_refused():
    with pytest.raises(ValueError, match="no values"):
        evaluation.interval([])


@pytest.mark.parametrize(("difference", "differing"), [(0.05, 0.15), (0.1, 0.3)])
def test_rows_to_see_give_the_power_that_was_asked_for(difference, differing):
    rows = evaluation.rows_to_see(difference, differing)
    draw = np.random.default_rng(0)
    chances = [
        (differing + difference) / 2,
        (differing - difference) / 2,
        1 - differing,
    ]
    better, worse, _ = draw.multinomial(rows, chances, size=20_000).T
    gap = (better - worse) / rows
    error = np.sqrt((better + worse) / rows - gap**2) / np.sqrt(rows)
    assert (gap - 1.96 * error > 0).mean() == pytest.approx(0.8, abs=0.02)


def test_fewer_rows_show_a_larger_difference():
    assert evaluation.rows_to_see(0.02, 0.1) == 1960
    assert evaluation.rows_to_see(0.04, 0.1) < 1960 / 3.5
    assert evaluation.rows_to_see(0.02, 0.2) > 1.9 * 1960
    assert evaluation.rows_to_see(0.02, 0.1, power=0.9) > 1.2 * 1960


@pytest.mark.parametrize("values", [(0, 0.1), (0.2, 0.1), (-0.1, 0.2), (0.5, 1.1)])
def test_rows_to_see_an_impossible_difference_are_refused(values):
    with pytest.raises(ValueError, match="at least that many"):
        evaluation.rows_to_see(*values)
