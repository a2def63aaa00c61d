"""How sure a share is: its 95 % interval, by the bootstrap, and the rows it takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from typing import NamedTuple

DRAWS = 2000


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return "74% (68% to 80%)"."""
        return f"{self.mean:.0%} ({self.low:.0%} to {self.high:.0%})"


def interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval:
    """Return the mean of the values, with the interval that the bootstrap gives.

    It draws as many `groups` as there are, again and again, each with all its values:
    values of one group are not independent. Without groups, it draws single values.
    Raises ValueError if there are no values. Source: Efron 1979.
    """
    import numpy as np

    if not len(values):
        raise ValueError("There are no values to average: is the test file empty?")
    names = range(len(values)) if groups is None else groups
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    places = [number[name] for name in names]
    sums = np.bincount(places, weights=np.asarray(values, dtype=float))
    counts = np.bincount(places)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(np.mean(values)), float(low), float(high))


def rows_to_see(difference: float, differing: float, power: float = 0.8) -> int:
    """Return how many rows show a difference between two models on the same rows.

    `difference` is that of their shares, and `differing` the share of rows on which one
    is right and the other wrong. With so many independent rows, the 95 % interval of
    the difference leaves out zero with the probability `power`. Raises ValueError
    unless 0 < difference <= differing <= 1. Source: Connor 1987, for McNemar's test.

    >>> rows_to_see(0.02, 0.10)
    1960
    """
    if not 0 < difference <= differing <= 1:
        raise ValueError(
            f"difference = {difference} and differing = {differing}: they must be "
            "above 0 and at most 1, and two models that differ by a share of rows "
            "differ on at least that many."
        )
    normal = statistics.NormalDist()
    spread = normal.inv_cdf(0.975) * math.sqrt(differing)
    spread += normal.inv_cdf(power) * math.sqrt(differing - difference**2)
    return math.ceil((spread / difference) ** 2)
