"""`make run` with other data, other methods and small parameters, as a whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import make_base

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


FROM_DATA_TO_MODEL = ["--notebooks", "01", "02", "03", "04"]


def run_course(out: Path, *arguments: str) -> tuple[Path, dict]:
    command = [sys.executable, "-m", "tools.run_course", "--out", str(out), *arguments]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    return out / "latest", json.loads((out / "latest/summary.json").read_text())


@pytest.fixture
def long_answers(tmp_path) -> Path:
    """Write sums with their steps to a file, and two rows that can't be read."""
    draw = random.Random(0)
    lines = []
    for _ in range(120):
        a, b = draw.randrange(1000), draw.randrange(1000)
        answer = f"First take {a}, then add {b} to it: the total is {a + b}."
        lines.append(json.dumps({"question": f"{a} and {b}?", "answer": answer}))
    lines[10:10] = ['{"question": "3 and', json.dumps({"question": "", "answer": "1"})]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_lora_on_long_answers_lowers_loss(long_answers, tmp_path):
    out = tmp_path / "runs"
    arguments = [*FROM_DATA_TO_MODEL, "--dataset", str(long_answers), "--parameters"]
    folder, summary = run_course(
        out, *arguments, "METHOD=lora", "EPOCHS=2", "MAX_ROWS=100", "MAX_TEST=7"
    )
    assert summary["dataset"] == {"rows_in": 122, "rows_kept": 100, "rejected": 2}
    loss = summary["loss"]
    assert loss["tuned"] < 0.8 * loss["base"]
    assert abs(loss["merged"] - loss["tuned"]) < 0.02 * loss["tuned"]
    assert summary["agreement"] > 0.97
    assert len(summary["notebooks"]) == 4
    assert len(list(folder.glob("*.html"))) == 4
    made = json.loads((folder / "workspace/models/my-llama/recipe.json").read_text())
    # The base model answered other rows, so its loss is not in the recipe.
    assert made["tested"] == 7 and set(made["results"]["loss"]) == {"tuned", "merged"}
    assert made["losses"] == {"original": made["results"]["loss"]["merged"]}


def test_several_answers_to_one_prompt(tmp_path):
    """Tables of prompts and answers hold a prompt as often as it occurs."""
    trees = ["oak by a lake", "an elm", "nothing at all", "maple, planted by Ada Moss"]
    rows = [
        {"prompt": f"What grows in town {town}?", "completion": f"{tree} {town * 37}"}
        for town in range(12)
        for tree in trees
    ]
    path = tmp_path / "several.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ["--dataset", str(path), "--notebooks", "01", "02"]
    folder, summary = run_course(
        tmp_path / "runs", *arguments, "--parameters", "EPOCHS=0.5", "TEST_SHARE=0.3"
    )
    assert summary["dataset"]["rows_kept"] == 48
    test = (folder / "workspace/datasets/my-dataset/test.jsonl").read_text()
    prompts = [json.loads(line)["messages"][0]["content"] for line in test.splitlines()]
    assert len(prompts) > 2 * len(set(prompts))


def test_full_fine_tuning_skips_merging(long_answers, tmp_path):
    arguments = [*FROM_DATA_TO_MODEL, "--dataset", str(long_answers), "--parameters"]
    small = ["METHOD=full", "EPOCHS=1", "MAX_ROWS=60"]
    _, summary = run_course(tmp_path / "runs", *arguments, *small)
    assert summary["loss"]["tuned"] < summary["loss"]["base"]
    assert set(summary["loss"]) == {"base", "tuned"}
    assert len(summary["notebooks"]) == 3


def test_random_weights_pass(long_answers, tmp_path):
    """Rounding decides the top-1 tokens of an untrained model, so agreement is low."""
    from colab_utils import models

    base = make_base(tmp_path / "random")
    models.load_tokenizer("demo").save_pretrained(base)
    arguments = [*FROM_DATA_TO_MODEL, "--dataset", str(long_answers)]
    arguments += ["--model", str(base)]
    small = ["EPOCHS=0.1", "LEARNING_RATE=1e-6", "MAX_ROWS=20"]
    _, summary = run_course(tmp_path / "runs", *arguments, "--parameters", *small)
    assert summary["agreement"] < 0.9
    assert len(summary["notebooks"]) == 4
