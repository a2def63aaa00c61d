"""Run the course on SmolLM2-135M-Instruct, with each method: `make real`.

`pytest tests` does not collect this file. The first run downloads the model (93 MB).
The environment variable DATASET names another dataset. The executed notebooks are in
the folders of runs/real.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.llama_cpp import LlamaCpp, compare

from colab_utils import data, generation, models, recipe, weights
from tools import real_model

ROOT = Path(__file__).parents[2]
DATASET = os.environ.get("DATASET") or "openai/gsm8k:main"
METHODS = ("qlora", "lora", "full")
ROWS = {"MAX_ROWS": 48, "MAX_TOKENS": 128, "TEST_SHARE": 0.25}  # of notebook 01
# Enough updates to learn where an answer ends. Full fine-tuning takes a lower rate.
RATES = {"qlora": 1e-3, "lora": 1e-3, "full": 1e-4}
EPOCHS = 3
# The held-out loss falls by at least this (nats a token), half of what was measured.
LOWER = 0.4
QUESTIONS, LENGTH = 6, 128  # that are answered, and the tokens of an answer


@dataclass(frozen=True)
class Run:
    """A course with one method, in a workspace that all methods share."""

    method: str
    workspace: Path

    @property
    def adapter(self) -> Path:
        return self.workspace / "adapters" / self.method

    @property
    def model(self) -> Path:
        """The merged model; the trained model itself after full fine-tuning."""
        kind = "adapters" if self.method == "full" else "models"
        return self.workspace / kind / self.method

    def tests(self) -> list[data.Row]:
        return data.read(self.workspace / "datasets" / "my-dataset", "test")


def run_course(workspace: Path, notebooks: list[str], **parameters: object) -> None:
    """Run notebooks; their output appears as they go."""
    command = [sys.executable, "-m", "tools.run_course", "--notebooks", *notebooks]
    command += ["--out", str(workspace.parent), "--dataset", DATASET]
    command += ["--model", str(real_model.build())]
    command += ["--parameters", *(f"{name}={v}" for name, v in parameters.items())]
    environment = {"WORKSPACE": str(workspace), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)


@pytest.fixture(scope="module")
def workspace() -> Path:
    """A new workspace with the dataset of notebook 01."""
    folder = ROOT / "runs" / "real" / f"workspace-{time.strftime('%Y%m%d-%H%M%S')}"
    run_course(folder, ["01"], **ROWS)
    return folder


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, workspace: Path) -> Run:
    method = request.param
    run_course(
        workspace,
        ["02"],
        METHOD=method,
        EPOCHS=EPOCHS,
        LEARNING_RATE=RATES[method],
        ADAPTER_NAME=method,
    )
    return Run(method, workspace)


@pytest.fixture(scope="module")
def merged(run: Run) -> Run:
    """The same course after notebook 04; full fine-tuning leaves nothing to merge."""
    if run.method != "full":
        names = {"ADAPTER_NAME": run.method, "MODEL_NAME": run.method}
        run_course(run.workspace, ["04"], **names)
    return run


def test_training_lowers_held_out_loss(run: Run) -> None:
    loss = recipe.read(run.adapter)["results"]["loss"]
    print(f"{run.method}: held-out loss {loss['base']:.3f} -> {loss['tuned']:.3f}")
    assert loss["base"] - loss["tuned"] >= LOWER


def test_the_third_notebook_runs(run: Run) -> None:
    run_course(run.workspace, ["03"], ADAPTER_NAME=run.method, MAX_NEW_TOKENS=24)


def test_answers_end_by_themselves(run: Run) -> None:
    model, tokenizer = models.load_adapter(run.adapter)
    prompts = [row["messages"][:-1] for row in run.tests()[:QUESTIONS]]
    answers = generation.answers(model, tokenizer, prompts, LENGTH)
    lengths = [len(tokenizer.tokenize(answer)) for answer in answers]
    ended = sum(length < LENGTH - 1 for length in lengths)
    print(f"{run.method}: {ended} of {len(answers)} answers ended by themselves")
    assert ended >= 0.75 * len(answers)
    assert not any("<|im_" in answer for answer in answers)


def test_merged_model_equals_adapter(merged: Run) -> None:
    if merged.method == "full":
        pytest.skip("full fine-tuning leaves nothing to merge")
    results = recipe.read(merged.model)["results"]
    loss, difference = results["loss"], results["difference"]
    print(
        f"{merged.method}: {difference:.1e} apart, agreement {results['agreement']:.1%}"
    )
    assert difference < 1e-2
    assert abs(loss["merged"] - loss["tuned"]) < 0.05


def test_gguf_has_the_greedy_tokens_of_transformers(
    merged: Run, tmp_path: Path
) -> None:
    """llama.cpp rounds activations, so the order of almost equal tokens may differ."""
    file = weights.write_gguf(merged.model, tmp_path / "f16.gguf", "f16")
    tokenizer = models.load_tokenizer(str(merged.model))
    prompts = [
        tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)
        for row in merged.tests()[:QUESTIONS]
    ]
    ids = [prompt["input_ids"] for prompt in prompts]
    agreed, behind, _ = compare(LlamaCpp(file), merged.model, "f16", ids, 48)
    print(
        f"{merged.method}: {agreed:.0%} of the answers have the same 48 tokens; they"
        f" are at most {behind:.3f} nats behind transformers' top-1 tokens"
    )
    # The file rounds the weights of full fine-tuning, which are float32.
    assert agreed >= 0.8 and behind <= (0.1 if merged.method == "full" else 0.02)


def test_gguf_stops_where_an_answer_ends(merged: Run, tmp_path: Path) -> None:
    file = weights.write_gguf(merged.model, tmp_path / "stops.gguf")
    served, (row, *_) = LlamaCpp(file), merged.tests()
    chat = served.post("/apply-template", messages=row["messages"][:-1])["prompt"]
    found = served.complete(served.tokenize(chat), LENGTH)
    assert found["stop_type"] == "eos"
    assert "<|im_end|>" not in found["content"]
