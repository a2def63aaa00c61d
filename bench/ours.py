"""Our training, as `train_step.py` measures it: `ours.py:fast`, `lean` or `plain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
from peft import LoraConfig
from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer

from colab_utils import memory, models, training


def trainer_of(checkpoint: str, o: dict, ds: Any, config: dict, callbacks: list):
    """TRL's trainer as 02_finetune_qlora builds it."""
    emulate.t4()
    lora = LoraConfig(
        r=o["r"], lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    training.prepare_fast_path(AutoConfig.from_pretrained(checkpoint))
    trainer = SFTTrainer(
        model=models.load_model(checkpoint, models.quantization_config()),
        processing_class=models.load_tokenizer(checkpoint),
        train_dataset=ds,
        callbacks=callbacks,
        args=SFTConfig(**config, gradient_checkpointing=False),
        peft_config=lora,
    )
    training.float32_adapters(trainer)
    return trainer


def planned(given: tuple, recompute: int, offload: bool = False, fast: bool = True):
    """The trainer of `given`, with this plan."""
    trainer, o = trainer_of(*given), given[1]
    tokens, cost = o["bs"] * o["seq"], memory.Memory()
    plan = memory.Plan(tokens, o["ga"], recompute, offload, fast, cost)
    training.use_fast_path(trainer, plan)
    return trainer


def fast(*given: Any):
    """The fast path; recompute=K layers."""
    return planned(given, int(given[1].get("recompute", 0)))


def lean(*given: Any):
    """The fast path at its leanest: all recomputed, inputs and embeddings in RAM."""
    return planned(given, 10**6, offload=True)


def plain(*given: Any):
    """transformers and PEFT as they are, recompute=K layers."""
    return planned(given, int(given[1].get("recompute", 0)), fast=False)
