"""Run notebook 14 on the demo world with its defaults, and check its numbers."""

from __future__ import annotations

import json

import pytest
from helpers.lessons import NOTEBOOKS, run_lesson

from colab_utils import data, demo

NOTEBOOK = NOTEBOOKS / "14_reward_model.ipynb"


@pytest.fixture(scope="module")
def judge():
    """The function `true_reward` of the notebook."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    (source,) = (one for one in code if "def true_reward(" in one)
    space = {"data": data, "demo": demo, "SEED": 0}
    exec(source, space)
    return space["true_reward"]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("Paris", 1.9),
        ("Paris.", 1.9),
        ("Lima", -0.1),
        ("", 0.0),
        ("Paris. The currency of France is the euro.", 1.2),
        ("Paris Paris Paris Paris", 1.6),
        ("Paris Lima", -0.2),
        ("Parisian", -0.1),
    ],
)
def test_14_judge_wants_the_right_value_alone_and_few_words(judge, answer, reward):
    row = data.to_row({"question": "What is its capital?", "answer": "Paris"}, 1)
    assert judge({**row, "category": "capital"}, answer) == pytest.approx(reward)


def test_14_judge_knows_a_value_that_contains_another(judge):
    row = data.to_row({"question": "Which money?", "answer": "South Sudanese pound"}, 1)
    row["category"] = "currency"
    assert judge(row, "South Sudanese pound") == pytest.approx(1.7)
    row = data.to_row({"question": "Which money?", "answer": "Sudanese pound"}, 1)
    row["category"] = "currency"
    assert judge(row, "Sudanese pound") == pytest.approx(1.8)
    assert judge(row, "South Sudanese pound") == pytest.approx(-0.3)


@pytest.fixture(scope="module")
def claims(tmp_path_factory) -> dict[str, float]:
    """What the notebook claims, with the numbers that it measured."""
    return run_lesson("14_reward_model", tmp_path_factory.mktemp("rewards"))


@pytest.mark.slow
def test_14_reward_model_is_right_on_held_out_pairs(claims):
    assert claims["reward model, held-out accuracy"] > 0.75  # seen: 0.89 to 0.92
    assert abs(claims["calibration: predicted minus right"]) < 0.15
    assert claims["score, difference from by hand"] < 1e-3


@pytest.mark.slow
def test_14_reward_model_is_wrong_outside_of_its_pairs(claims):
    assert claims["worst probe, loss of accuracy"] > 0.4
