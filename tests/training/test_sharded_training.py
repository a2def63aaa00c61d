"""In two processes: a sharded model trains as a whole one, and all save together."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.gloo import in_processes
from helpers.training import UPDATES


def train_both(folder: str) -> list[dict[str, Any]]:
    """Train the demo for three updates: whole, then sharded."""
    import torch.distributed as dist

    # accelerate reads them, and takes the process group that exists
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": os.environ["RANK"], "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = "29511"
    return [train(sharded, f"{folder}/{sharded}") for sharded in (False, True)]


def train(sharded: bool, folder: str) -> dict[str, Any]:
    """Return the losses, a sum of the trained weights, and the files."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig

    from colab_utils import data, demo, memory, models, training
    from colab_utils.training.sft import FastSFTTrainer

    load = models.load_sharded if sharded else models.load_model
    rows = [{"messages": data.to_messages(row)} for row in demo.questions()[:32]]
    model = load("demo", models.quantization_config())
    set_seed(0)
    trainer = FastSFTTrainer(
        model=model,
        processing_class=models.load_tokenizer("demo"),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(output_dir=folder, **UPDATES, **training.precision()),
    )
    training.float32_adapters(trainer)
    plan = memory.Plan(512, 1, 2, 0, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    trainer.train()
    trainer.save_model(folder)
    log = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    total = sum(p.double().sum().item() for p in trained)
    return {"losses": log, "sum": total, "files": os.listdir(folder)}


@pytest.mark.slow
def test_train_sharded_equals_whole(tmp_path):
    found = in_processes(tmp_path, train_both, str(tmp_path))
    for whole, sharded in found:
        assert len(sharded["losses"]) == 3
        assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert sharded["sum"] == pytest.approx(whole["sum"], rel=1e-5)
    (_, first), (_, second) = found
    assert first["sum"] == second["sum"]
    assert "adapter_model.safetensors" in first["files"]


def saves_at_once() -> list[bool]:
    """Return whether to save when ten minutes are over in the first, in the second."""
    import torch
    import torch.distributed as dist

    from colab_utils.training.callbacks import SaveEvery

    args = SimpleNamespace(world_size=2, device="cpu", output_dir="no-such-folder")
    state, found = SimpleNamespace(global_step=1, max_steps=9), []
    for early in (0, 1):
        control, clock = SimpleNamespace(should_save=False), SaveEvery(10)
        clock.on_train_begin(args, state, control)
        clock.saved = time.time() - (700 if dist.get_rank() == early else 0)
        clock.on_step_end(args, state, control, model=torch.nn.Linear(1, 1))
        found.append(control.should_save)
    return found


@pytest.mark.slow
def test_the_clock_of_the_first_process_decides_when_all_save(tmp_path):
    assert in_processes(tmp_path, saves_at_once) == [[True, False]] * 2
