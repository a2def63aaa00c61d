"""Calibration: compare predicted probabilities with the share that is right."""

from __future__ import annotations

from collections.abc import Sequence


def calibration(
    probabilities: Sequence[float], right: Sequence[bool], bins: int = 5
) -> list[tuple[float, float]]:
    """Return the mean probability and the share right of each bin of predictions.

    The bins have about as many predictions each, in order of the probability. There
    are fewer bins than `bins` if there are fewer predictions. Raises ValueError if
    there are none, or not as many probabilities as values of `right`.
    """
    import numpy as np

    if not len(probabilities):
        raise ValueError("There are no predictions: is the test file empty?")
    if len(probabilities) != len(right):
        raise ValueError(
            f"There are {len(probabilities):,} probabilities for {len(right):,} "
            "predictions: give one for each."
        )
    order = np.argsort(probabilities, kind="stable")
    sure, hit = np.asarray(probabilities, float)[order], np.asarray(right, float)[order]
    parts = np.array_split(np.arange(len(order)), min(bins, len(order)))
    return [(float(sure[part].mean()), float(hit[part].mean())) for part in parts]


def calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], bins: int = 5
) -> float:
    """Return the expected calibration error: the bins' mean difference.

    A bin's difference is that of its mean probability and its share right. Source:
    Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for
    natural language processing models", for bins of equal size; Guo et al. 2017 for the
    name.
    """
    found = calibration(probabilities, right, bins)
    return sum(abs(sure - hit) for sure, hit in found) / len(found)
