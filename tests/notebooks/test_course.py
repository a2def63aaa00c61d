"""The course with other data, other methods and small parameters, as a whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import datasets_hub
from helpers.chat_server import serve
from helpers.checkpoints import make_base
from helpers.hub import served
from helpers.lessons import run_in_one_process

from colab_utils import data, models, recipe
from tools.course_report import summarize

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DOUBLES = ROOT / "tests" / "helpers" / "google_colab"
FROM_DATA_TO_MODEL = (
    "01_create_dataset",
    "02_finetune_qlora",
    "03_inference",
    "04_merge_and_publish",
)
MEASURE = ("12_evaluate", "16_judge")


def write_rows(path: Path, rows: list[dict | str]) -> Path:
    """Write rows as JSON Lines; a row that is text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def long_answers(folder: Path) -> Path:
    """Write sums with their steps to a file, and two rows that can't be read."""
    draw = random.Random(0)
    rows: list[dict | str] = []
    for _ in range(120):
        a, b = draw.randrange(1000), draw.randrange(1000)
        answer = f"First take {a}, then add {b} to it: the total is {a + b}."
        rows.append({"question": f"{a} and {b}?", "answer": answer})
    rows[10:10] = ['{"question": "3 and', {"question": "", "answer": "1"}]
    return write_rows(folder / "sums.jsonl", rows)


def several_answers(folder: Path) -> Path:
    """Write a table of prompts with several answers each."""
    trees = ["oak by a lake", "an elm", "nothing at all", "maple, planted by Ada Moss"]
    rows = [
        {"prompt": f"What grows in town {town}?", "completion": f"{tree} {town * 37}"}
        for town in range(12)
        for tree in trees
    ]
    return write_rows(folder / "several.jsonl", rows)


def dialogues(folder: Path) -> Path:
    """Write conversations with a system prompt, and with two questions."""
    rows: list[dict | str] = []
    for number in range(20):
        turns = [
            {"role": "system", "content": "Add one."},
            {"role": "user", "content": f"{number}"},
            {"role": "assistant", "content": f"{number + 1}"},
            {"role": "user", "content": f"{number + 40}"},
            {"role": "assistant", "content": f"{number + 41}"},
        ]
        rows.append({"messages": turns[: 3 + 2 * (number % 2)]})
    return write_rows(folder / "dialogues.jsonl", rows)


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory) -> dict[str, Path]:
    """The workspaces of three courses, which ran in one process."""
    folder = tmp_path_factory.mktemp("course")
    base = make_base(folder / "model")
    models.load_tokenizer("demo").save_pretrained(base)
    sums, several = long_answers(folder), several_answers(folder)
    datasets_hub.write(folder / "hub", mmlu=False)
    courses = {
        "LoRA": [
            {"DATASET": str(sums), "MAX_ROWS": 100},
            {"METHOD": "lora", "EPOCHS": 2},
            {},
            {"MAX_TEST": 7},
        ],
        "several": [{"DATASET": str(several), "TEST_SHARE": 0.3}, {"EPOCHS": 0.5}],
        "random": [
            {"DATASET": str(dialogues(folder)), "MODEL": str(base), "TEST_SHARE": 0.4},
            {"MODEL": str(base), "EPOCHS": 0.1, "LEARNING_RATE": 1e-6},
            {},
            {},
        ],
    }
    jobs = [
        (notebook, given, folder / name)
        for name, course in courses.items()
        for notebook, given in (
            *zip(FROM_DATA_TO_MODEL, course, strict=False),
            *((notebook, {"MAX_TEST": 8}) for notebook in MEASURE),
        )
    ]
    hub = datasets_hub.Hub.of(folder / "hub")
    benchmarks = {"BENCHMARKS": "winogrande, piqa", "MAX_TEST": 4}
    with serve() as server, served(hub) as address, pytest.MonkeyPatch.context() as env:
        env.setenv("HF_ENDPOINT", address)
        env.setenv("HF_HOME", str(folder / "hf"))
        server.usual = "Answer A is better."
        judge = {"JUDGE": server.url, "JUDGE_MODEL": "m", "KEY_NAME": "", "MAX_TEST": 2}
        jobs.append(("12_evaluate", benchmarks, folder / "several"))
        jobs += [("16_judge", judge, folder / "several")] * 2
        # The last one, because it imports google.colab.
        env.syspath_prepend(str(DOUBLES))
        env.setenv("COLAB_DOUBLE_AI", '["**Answer B**", "declined"]')
        jobs.append(
            (
                "16_judge",
                judge | {"JUDGE": "colab", "JUDGE_MODEL": ""},
                folder / "random",
            )
        )
        results = run_in_one_process(jobs, cold=True)
    assert not any(error for error, _ in results), [e for e, _ in results if e]
    assert len(server.seen) == 4  # the second run asks nothing
    _, printed = results[-4]
    assert "piqa is left out. DatasetNotFoundError" in printed
    assert "1 of 2 public benchmarks" in printed
    assert "one prompt is left out: Colab's model declined it" in results[-1][1]
    for _, printed in results[-3:-1]:
        assert "names the answer shown first: 100%" in printed
        assert "same answer in both orders: 0%" in printed
    return {name: folder / name for name in courses}


def test_lora_on_long_answers_lowers_loss(workspaces):
    summary = summarize(workspaces["LoRA"], {})
    assert summary["dataset"] == {"rows_in": 122, "rows_kept": 100, "rejected": 2}
    loss = summary["loss"]
    assert loss["tuned"] < 0.8 * loss["base"]
    assert abs(loss["merged"] - loss["tuned"]) < 0.02 * loss["tuned"]
    assert summary["agreement"] > 0.97
    made = recipe.read(workspaces["LoRA"] / "models/my-llama")
    # The base model answered other rows, so its loss is not in the recipe.
    assert made["tested"] == 7 and set(made["results"]["loss"]) == {"tuned", "merged"}
    assert made["losses"] == {"original": made["results"]["loss"]["merged"]}


def test_other_data_is_evaluated_with_and_without_a_merged_model(workspaces):
    found = {
        name: {path.name for path in (folder / "reports/my-report").iterdir()}
        for name, folder in workspaces.items()
    }
    files = {"README.md", "recipe.json", "adapters.png"}
    models_there = {"adapter", "base", "merged", "GGUF"}
    assert found["LoRA"] - files == models_there
    assert found["several"] - files == {"adapter", "base", "benchmark-winogrande"}
    for folder in workspaces.values():
        card = (folder / "adapters/my-adapter/README.md").read_text()
        assert "## Evaluation" in card and "## Trust" in card
        assert ("| winogrande" in card) == (folder.name == "several")


def test_several_answers_to_one_prompt(workspaces):
    """Tables of prompts and answers hold a prompt as often as it occurs."""
    summary = summarize(workspaces["several"], {})
    assert summary["dataset"]["rows_kept"] == 48
    rows = data.read(workspaces["several"] / "datasets/my-dataset", "test")
    prompts = [data.prompt_of(row) for row in rows]
    assert len(prompts) > 2 * len(set(prompts))


def test_random_weights_pass(workspaces):
    """Rounding decides the top-1 tokens of an untrained model, so agreement is low."""
    assert summarize(workspaces["random"], {})["agreement"] < 0.9


def test_make_run_of_full_fine_tuning_leaves_out_merging(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tools.run_course",
        "--out",
        str(tmp_path / "runs"),
    ]
    command += ["--dataset", str(long_answers(tmp_path)), "--notebooks", "01", "02"]
    command += ["03", "04", "--parameters", "METHOD=full", "EPOCHS=1", "MAX_ROWS=60"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    folder = tmp_path / "runs/latest"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["loss"]["tuned"] < summary["loss"]["base"]
    assert set(summary["loss"]) == {"base", "tuned"}
    assert len(summary["notebooks"]) == len(list(folder.glob("*.html"))) == 3
