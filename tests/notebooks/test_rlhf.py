"""Run notebook 15 with its defaults; check its numbers and its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.lessons import run_lesson

from colab_utils import recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the executed notebook and its workspace."""
    return tmp_path_factory.mktemp("rlhf")


@pytest.fixture(scope="module")
def claims(folder) -> dict[str, float]:
    """What the notebook claims, with the numbers that it measured."""
    return run_lesson("15_rlhf", folder)


def test_15_proxy_rises_without_a_penalty(claims):
    assert claims["proxy, gain"] > 0.05  # seeds 0 to 2: 0.32, 0.23, 0.48


def test_15_reward_model_chooses_better_answers(claims):
    accuracy = claims["reward model, accuracy on held-out answers"]
    assert accuracy > 0.65  # seeds 0 to 2: 0.86, 0.93, 0.95
    assert claims["points by best of 8"] > 8  # 22, 26, 31


def test_15_adapter_answers_as_the_policy_in_training(folder, claims):
    adapter = folder / "workspace/adapters/my-rlhf-adapter"
    assert recipe.read(adapter)["base_model"] == "demo"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    assert claims["answers that differ"] == 0
