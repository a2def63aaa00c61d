"""Run notebook 10 with its defaults; check its numbers and its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from colab_utils import data, demo, models, recipe, weights
from tools.course_report import claims as read_claims
from tools.execute import run_notebook, use_this_interpreter

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[2] / "notebooks/10_rewards.ipynb"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder with the executed notebook and its workspace."""
    folder = tmp_path_factory.mktemp("rewards")
    with pytest.MonkeyPatch.context() as patch, use_this_interpreter():
        patch.setenv("WORKSPACE", str(folder / "workspace"))
        patch.setenv("HEADLESS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        result = run_notebook(NOTEBOOK, folder / "done.ipynb", {})
    assert result["failure"] is None
    return folder


def test_10_policy_gains_and_an_unpunished_one_cheats(finished):
    found = {one["claim"]: one["value"] for one in read_claims(finished / "done.ipynb")}
    assert found["points gained by GRPO"] > 15
    assert found["points gained by PPO"] > 15
    assert found["proxy, gain"] > 0.2
    assert found["points, change"] < -10
    assert found["points by the penalty"] > 15


def test_10_adapter_merges_like_any_other(finished, tmp_path, tokenizer):
    adapter = finished / "workspace/adapters/my-rewarded-adapter"
    assert recipe.read(adapter)["base_model"] == "demo"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    rows = [data.to_row(raw, n) for n, raw in enumerate(demo.questions()[:40])]
    tokens = [row["input_ids"] for row in data.tokenize(rows, tokenizer)]
    base = models.download("demo")
    out = weights.merge(base, adapter, tmp_path / "out", "dequantized")
    found = weights.verify(base, adapter, out, tokens, "dequantized")
    assert found.difference < 2e-3
