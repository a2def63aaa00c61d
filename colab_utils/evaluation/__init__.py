"""Evaluation: measure a model on rows that it was not trained on.

`metrics` has all measures: exact match, loss, agreement of two models, and chance.
"""

from colab_utils.evaluation.metrics import (
    Accuracy,
    HeldOut,
    Score,
    accuracy,
    chance,
    exact_match,
    held_out,
    score,
)

__all__ = [
    "Accuracy",
    "HeldOut",
    "Score",
    "accuracy",
    "chance",
    "exact_match",
    "held_out",
    "score",
]
