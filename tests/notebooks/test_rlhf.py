"""Run notebook 15 with its defaults; check its numbers and its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from colab_utils import recipe
from tools.course_report import claims as read_claims
from tools.execute import run_notebook, use_this_interpreter

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[2] / "notebooks/15_rlhf.ipynb"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder with the executed notebook and its workspace."""
    folder = tmp_path_factory.mktemp("rlhf")
    with pytest.MonkeyPatch.context() as patch, use_this_interpreter():
        patch.setenv("WORKSPACE", str(folder / "workspace"))
        patch.setenv("HEADLESS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        result = run_notebook(NOTEBOOK, folder / "done.ipynb", {})
    assert result["failure"] is None
    return folder


@pytest.fixture(scope="module")
def claims(finished) -> dict[str, float]:
    """What the notebook claims, with the numbers that it measured."""
    return {one["claim"]: one["value"] for one in read_claims(finished / "done.ipynb")}


def test_15_proxy_rises_without_a_penalty(claims):
    assert claims["proxy, gain"] > 0.05  # seen: 0.15, 0.34, 0.40


def test_15_reward_model_chooses_and_trains_better_answers(claims):
    assert claims["reward model, accuracy on held-out answers"] > 0.75
    assert claims["points by best of 8"] > 8
    assert claims["points by PPO, sampled"] > 2


def test_15_adapter_answers_as_the_policy_in_training(finished, claims):
    adapter = finished / "workspace/adapters/my-rlhf-adapter"
    assert recipe.read(adapter)["base_model"] == "demo"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    assert claims["answers that differ"] == 0
