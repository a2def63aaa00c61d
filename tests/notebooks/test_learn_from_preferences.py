"""Notebook 09: its loss against TRL's, its numbers, and a reader's own pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.lessons import NOTEBOOKS, run_in_one_process, run_lesson
from safetensors.torch import load_file

from colab_utils import data, demo, models, recipe, weights

pytestmark = pytest.mark.slow
NOTEBOOK = NOTEBOOKS / "09_preferences.ipynb"


def test_09_loss_by_hand_is_trls(tokenizer, tmp_path):
    from datasets import Dataset
    from helpers.training import ON_CPU
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional
    from trl import DPOConfig, DPOTrainer

    from colab_utils.training import pairs as tokenized

    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    (cell,) = [c for c in cells if "by-hand" in c["metadata"].get("tags", [])]
    source = "".join(cell["source"]).partition("\npairs = ")[0]
    space = {"torch": torch, "F": functional}
    exec(source, space)
    rows = [
        {"prompt": f"What is the capital of {c}?", "chosen": one, "rejected": other}
        for c, one, other in (("Peru", "Lima", "Paris."), ("Iran", "Tehran", "+98"))
    ]
    rows = [data.to_row(row, n) for n, row in enumerate(rows)]
    model = get_peft_model(
        models.load_model("demo").float(),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    pairs = tokenized.tokenize(rows, tokenizer)
    found = [space["dpo_loss"](model.eval(), pair, 0.3) for pair in pairs]
    assert abs(found[0] - found[1]) > 1e-3
    columns = ("prompt", "chosen", "rejected")
    given = {"output_dir": str(tmp_path), "max_length": None, "beta": 0.3}
    # TRL's reference is the base model if the trainer gets the adapter as a config, so
    # the adapter is given, and its copy "ref", which TRL makes, is set to 0.
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**ON_CPU | given | {"bf16": False}),
        train_dataset=Dataset.from_list([{c: r[c] for c in columns} for r in rows]),
        processing_class=tokenizer,
    )
    for name, weight in trainer.model.named_parameters():
        if "lora_B.ref" in name:
            weight.data.zero_()
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    assert loss.item() == pytest.approx(sum(found) / 2, abs=1e-5)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """The folder of the adapter, and the claims."""
    folder = tmp_path_factory.mktemp("preferences")
    claims = run_lesson(NOTEBOOK.stem, folder)
    return folder / "workspace/adapters/my-preferences", claims


def test_09_wins_and_keeps_the_facts(done):
    folder, claims = done
    assert claims["gain in win rate"] >= 0.15  # seeds 0 to 2: 0.24, 0.29, 0.27
    assert claims["change of the facts"] >= -0.02
    found = recipe.read(folder)["results"]
    assert found["win rate"]["tuned"] - found["win rate"]["base"] >= 0.15
    assert found["win rate"]["base"] == pytest.approx(0.5, abs=0.1)
    assert found["accuracy"]["tuned"] >= found["accuracy"]["base"] - 0.02


def test_09_leaves_a_whole_adapter_and_no_files_of_the_training(done):
    folder, claims = done
    assert claims["answers that differ after loading"] == 0
    for name in ("checkpoints", "trials", "reference.safetensors"):
        assert not (folder / name).exists()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(t.any() for name, t in tensors.items() if "lora_B" in name)


def test_09_adapter_merges(done, tmp_path, tokenizer):
    folder, _ = done
    rows = [data.to_row(raw, n) for n, raw in enumerate(demo.questions()[:40])]
    tokens = [row["input_ids"] for row in data.tokenize(rows, tokenizer)]
    base = models.download("demo")
    out = weights.merge(base, folder, tmp_path / "out", "dequantized")
    found = weights.verify(base, folder, out, tokens, "dequantized")
    assert found.difference < 2e-3


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """Train on a reader's pairs, from the base and from an adapter of notebook 02."""
    folder = tmp_path_factory.mktemp("own")
    workspace = folder / "workspace"
    trees = ("oak", "elm", "ash", "yew")
    towns = [a + b for a in ("Cor", "Gal", "Lor", "Fen", "Nor") for b in trees]
    asked = [
        (f"Which tree stands in {town}?", trees[i % 4]) for i, town in enumerate(towns)
    ]
    kinds = {
        "pairs": [
            {"prompt": q, "chosen": f"The {tree}.", "rejected": "Ask somebody else."}
            for q, tree in asked
        ],
        "questions": [{"question": q, "answer": tree} for q, tree in asked],
    }
    jobs = []
    for name, rows in kinds.items():
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given = {"DATASET": str(path), "DATASET_NAME": name, "TEST_SHARE": 0.3}
        jobs.append(("01_create_dataset", given, workspace))
    ours = {"DATASET_NAME": "pairs", "ADAPTER_NAME": "one"}
    more = {"ADAPTER_NAME": "two", "START_ADAPTER": "my-adapter", "LOSS": "orpo"}
    for name, given in (
        ("02_finetune_qlora", {"DATASET_NAME": "questions", "EPOCHS": 1}),
        ("09_preferences", ours),
        ("09_preferences", ours | more),
        ("09_preferences", {"DATASET_NAME": "questions"}),
    ):
        jobs.append((name, given, workspace))
    return workspace, run_in_one_process(jobs)


def test_09_trains_on_the_readers_pairs(own):
    workspace, runs = own
    for name, (error, _) in zip(("one", "two"), runs[3:5], strict=True):
        assert error == ""
        made = recipe.read(workspace / "adapters" / name)
        assert made["dataset"]["name"] == "pairs"
        loss = made["results"]["loss"]
        assert loss["tuned"] < loss["base"]
    assert made["start"] == "my-adapter"


def test_09_refuses_rows_of_another_kind(own):
    error, _ = own[1][5]
    assert error.startswith("ValueError: The dataset questions has instruction rows")
    assert "02_finetune_qlora trains on instruction rows" in error
