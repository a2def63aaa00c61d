"""Evaluation: measure a model on rows that it was not trained on.

`metrics` has all measures: exact match, loss, agreement of two models, and chance.
`claims` prints what a lesson claims, with its number, and keeps it with the notebook.
`intervals` says how sure a share is, and `calibrating` whether predicted probabilities
are right. `reading` reads rows with a base model: vectors of texts, and the loss of
answers. `likelihood` scores continuations, `tasks` and `harness` serve the
lm-evaluation-harness, and `benchmarks` runs its own tasks by name. `judging` asks a
model which answer is better, and `reports` writes what was found into a folder.
"""

from colab_utils.evaluation.calibrating import calibration, calibration_error
from colab_utils.evaluation.claims import claim
from colab_utils.evaluation.intervals import Interval, interval, rows_to_see
from colab_utils.evaluation.metrics import (
    Accuracy,
    HeldOut,
    Score,
    accuracy,
    chance,
    edit_similarity,
    exact_match,
    held_out,
    score,
)
from colab_utils.evaluation.reading import Difficulty, difficulty, embeddings

__all__ = [
    "Accuracy",
    "Difficulty",
    "HeldOut",
    "Interval",
    "Score",
    "accuracy",
    "calibration",
    "calibration_error",
    "chance",
    "claim",
    "difficulty",
    "edit_similarity",
    "embeddings",
    "exact_match",
    "held_out",
    "interval",
    "rows_to_see",
    "score",
]
