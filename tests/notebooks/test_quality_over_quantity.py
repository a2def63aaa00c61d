"""Run notebook 06 on the demo world with its defaults, and check its numbers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import papermill
import pytest
from helpers.lessons import run_in_one_process

from colab_utils import data, demo
from tools.execute import use_this_interpreter

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/06_quality_over_quantity.ipynb"


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """The dataset of a run with the defaults, in another folder than the clone."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch, use_this_interpreter():
        patch.setenv("WORKSPACE", str(folder / "workspace"))
        patch.setenv("HEADLESS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("PYTHONPATH", str(ROOT))
        papermill.execute_notebook(
            NOTEBOOK,
            folder / "done.ipynb",
            kernel_name="python3",
            progress_bar=False,
            cwd=str(folder),
        )
    return folder / "workspace/datasets/my-curated"


def test_06_curated_rows_and_a_quarter_beat_everything(curated):
    made = json.loads((curated / "recipe.json").read_text())
    shares = made["results"]["exact match"]
    assert all(len(found) == 3 for found in shares.values())
    means = {name: statistics.mean(found) for name, found in shares.items()}
    # Seen with SEED 0 to 3: everything 0.13 to 0.19, curated 0.80 to 0.86, random 0.18
    # to 0.32, quarter 0.24 to 0.56 (0.54 with this SEED, 0).
    assert means["curated"] - means["everything"] > 0.45
    assert means["curated"] - means["random"] > 0.3
    assert means["quarter"] - means["everything"] > 0.15


def test_06_saves_rows_and_reasons(curated):
    rows = json.loads((curated / "recipe.json").read_text())["rows"]
    train = data.read(curated, "train")
    rejected = data.read_jsonl(curated / "rejected.jsonl")
    assert len(train) == rows["kept"]
    assert rows["in"] == len(train) + len(rejected) == 1074
    names = {one["reason"].partition(":")[0] for one in rejected}
    assert {"format", "refusal", "echo", "damage", "personal", "urls"} <= names
    assert {"disagreement", "contamination", "word list", "language"} <= names
    groups = {row["group"] for row in data.read(curated, "test")}
    assert not groups & {row["group"] for row in train}


def test_06_selects_rows_of_a_dataset_of_your_own(tmp_path):
    rows = [data.to_row(row, n) for n, row in enumerate(demo.questions()[:60], 1)]
    source = tmp_path / "workspace/datasets/mine"
    source.parent.mkdir(parents=True)
    given = {"source": "mine.csv", "metric": "accuracy", "parameters": {}}
    data.save(source, {"train": rows[:50], "test": rows[50:]}, [], "Mine.", **given)
    chosen = {"DATASET_NAME": "mine", "MODEL": "demo", "SELECT": 20}
    ((error, _),) = run_in_one_process(
        [(NOTEBOOK.stem, chosen, tmp_path / "workspace")]
    )
    assert error == ""
    curated = source.with_name("my-curated")
    made = json.loads((curated / "recipe.json").read_text())
    counts = made["rows"]["in"], made["rows"]["kept"]
    assert (made["source"], *counts) == ("mine.csv", 50, 20)
    saved = [data.prompt_of(row) for row in data.read(curated, "train")]
    asked = [data.prompt_of(row) for row in rows[:50]]
    assert len(set(saved)) == 20
    assert saved == [prompt for prompt in asked if prompt in saved]
