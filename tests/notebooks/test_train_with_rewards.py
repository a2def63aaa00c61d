"""Run notebook 10 with its defaults; check its numbers and its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.lessons import run_lesson

from colab_utils import data, demo, models, recipe, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the executed notebook and its workspace."""
    return tmp_path_factory.mktemp("rewards")


@pytest.fixture(scope="module")
def claims(folder) -> dict[str, float]:
    """What the notebook claims, with the numbers that it measured."""
    return run_lesson("10_rewards", folder)


def test_10_policy_gains_and_an_unpunished_one_cheats(claims):
    assert claims["points gained by GRPO"] > 5  # seeds 0 to 2: 21, 20, 10
    assert claims["points gained by PPO"] > 5  # 11, 29, 40
    assert claims["proxy, gain"] > 0.2  # 0.9, 1.0, 1.0
    assert claims["points, change"] < -10  # -37, -63, -33
    assert claims["points by the penalty"] > 15  # 28, 53, 48


def test_10_adapter_merges_like_any_other(folder, claims, tmp_path, tokenizer):
    adapter = folder / "workspace/adapters/my-rewarded-adapter"
    assert recipe.read(adapter)["base_model"] == "demo"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    rows = [data.to_row(raw, n) for n, raw in enumerate(demo.questions()[:40])]
    tokens = [row["input_ids"] for row in data.tokenize(rows, tokenizer)]
    base = models.download("demo")
    out = weights.merge(base, adapter, tmp_path / "out", "dequantized")
    found = weights.verify(base, adapter, out, tokens, "dequantized")
    assert found.difference < 2e-3
