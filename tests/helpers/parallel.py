"""A trainer as notebook 02 builds it, which a test's processes can build, too."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from torch.multiprocessing.spawn import start_processes
from transformers import TrainerCallback, TrainerState, set_seed
from trl import SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.training.sft import FastSFTTrainer
from helpers import warm
from helpers.training import ON_CPU, InBackward


def build(
    folder: Path, *callbacks, rows: int = 76, sharded: bool = False, **settings
) -> FastSFTTrainer:
    """Return a QLoRA trainer of the demo model on the fast path: 12 packed batches."""
    load = models.load_sharded if sharded else models.load_model
    tokenizer = models.load_tokenizer("demo")
    asked = [{"messages": data.to_messages(row)} for row in demo.questions()[:rows]]
    set_seed(0)
    trainer = FastSFTTrainer(
        model=load("demo", models.quantization_config()),
        args=SFTConfig(
            **ON_CPU
            | {
                "output_dir": str(folder),
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 2,
                "learning_rate": 1e-3,
                "max_length": 256,
                "packing": True,
                "optim": "adamw_torch",
            }
            | training.precision()
            | settings
        ),
        train_dataset=Dataset.from_list(data.tokenize(asked, tokenizer)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    training.float32_adapters(trainer)
    training.show_progress(trainer)
    training.use_fast_path(trainer, memory.Plan(256, 1, 2, 0, True, memory.Memory()))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def build_in_first(folder: Path) -> FastSFTTrainer:
    """Return a sharded trainer in the first process, and fail in the second."""
    if os.environ["RANK"] == "1":
        raise ValueError("planted before there is a trainer")
    return build(folder, sharded=True)


def build_short_of_memory(folder: Path) -> FastSFTTrainer:
    """Return a trainer; the memory of the second process runs out in its first step."""
    trainer = build(folder)
    if os.environ["RANK"] == "1":
        InBackward(trainer, 2)
    return trainer


def build_with_slow_disk(folder: Path) -> FastSFTTrainer:
    """Return a trainer; a file with its state stays empty for a second."""
    save = TrainerState.save_to_json

    def save_slowly(state: TrainerState, file: str) -> None:
        Path(file).write_text("")
        time.sleep(1)  # the notebook looks twice
        save(state, file)

    TrainerState.save_to_json = save_slowly
    return build(folder, max_steps=2)


class AtStep(TrainerCallback):
    """Do something at the end of a step, in the process with this number."""

    def __init__(self, step: int, what: str, rank: int = 1) -> None:
        self.step, self.what, self.rank = step, what, rank

    def on_step_end(self, args, state, control, **kwargs):
        """Fail, be killed, or save; all processes save."""
        if state.global_step != self.step:
            return
        if self.what == "save":
            control.should_save = True
        elif os.environ["RANK"] == str(self.rank):
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("planted in the second process")


def start_warm(work, args, *more, **options):
    """Start processes as torch does, but as forks that have imported the libraries."""
    warm.context()
    forked = functools.partial(warm.call, dict(os.environ), work)
    return start_processes(
        forked, args, *more, **options | {"start_method": "forkserver"}
    )
