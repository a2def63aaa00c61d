"""Run 01 to 04 with their defaults from top to bottom, and check the results."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from colab_utils import data, demo

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Execute the notebooks 01 to 04 with nbmake, in order, on the demo world."""
    folder = tmp_path_factory.mktemp("workspace")
    environment = os.environ | {
        "WORKSPACE": str(folder),
        "HEADLESS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900"]
    paths = sorted(map(str, (ROOT / "notebooks").glob("0[1-4]_*.ipynb")))
    run = subprocess.run(
        [*command, *paths],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return folder


def recipe(workspace: Path, kind: str) -> dict:
    found = list((workspace / kind).glob("*/recipe.json"))
    assert len(found) == 1
    return json.loads(found[0].read_text())


def test_01_rejects_exactly_the_planted_flaws(workspace):
    good = len(demo.questions())
    rows = recipe(workspace, "datasets")["rows"]
    assert rows["in"] == good + 58
    assert rows["kept"] == good
    assert rows["rejected"] == 58
    folder = workspace / "datasets" / "my-dataset"
    rejected = data.read(folder, "rejected")
    assert len(rejected) == rows["rejected"]
    assert all(row["line"] and row["reason"] for row in rejected)
    assert sum(row["reason"].startswith("refusal: ") for row in rejected) == 1


def test_01_splits_by_group(workspace):
    folder = workspace / "datasets" / "my-dataset"
    train, test = data.read(folder, "train"), data.read(folder, "test")
    assert not {r["group"] for r in train} & {r["group"] for r in test}
    assert 0.45 < len(test) / (len(train) + len(test)) < 0.55


def test_02_answers_held_out_and_not_invented_countries(workspace):
    found = recipe(workspace, "adapters")["results"]["accuracy"]
    assert found["base"] <= 0.05
    assert found["tuned"] >= 0.90  # seen: 0.958 to 0.978 over four seeds
    assert found["invented"] <= found["chance"]  # seen: 0.057 to 0.073, chance 0.113


def test_04_merged_model_agrees_with_adapter(workspace):
    found = recipe(workspace, "models")["results"]
    tuned = recipe(workspace, "adapters")["results"]["accuracy"]["tuned"]
    assert found["agreement"] >= 0.98
    assert abs(found["accuracy"]["merged"] - tuned) <= 0.02
    losses = recipe(workspace, "models")["losses"]
    into = recipe(workspace, "models")["merged_into"]
    assert set(losses) == {"original", "dequantized"}
    assert into == min(losses, key=losses.get)


def test_workspace_contains_all_files(workspace):
    adapter, model = workspace / "adapters/my-adapter", workspace / "models/my-llama"
    for file in ("adapter_model.safetensors", "training_log.json", "README.md"):
        assert (adapter / file).stat().st_size > 0
    for file in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        assert (model / file).stat().st_size > 0
    assert not (adapter / "checkpoints").exists()
    assert [path.name for path in model.parent.iterdir()] == ["my-llama"]


def test_02_shows_the_quantization_config_of_models():
    from transformers import BitsAndBytesConfig

    from colab_utils import models

    cells = json.loads((ROOT / "notebooks/02_finetune_qlora.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in cells["cells"]]
    source = next(s for s in sources if s.startswith("quantization = BitsAndBytes"))
    names = {"BitsAndBytesConfig": BitsAndBytesConfig, "models": models}
    shown = eval(
        compile(ast.Expression(ast.parse(source).body[0].value), "", "eval"), names
    )
    assert shown.to_dict() == models.quantization_config().to_dict()
