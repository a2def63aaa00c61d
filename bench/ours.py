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


def fast(checkpoint, o, ds, config, callbacks):
    """The fast path; recompute=K layers."""
    trainer = trainer_of(checkpoint, o, ds, config, callbacks)
    tokens, recompute = o["bs"] * o["seq"], int(o.get("recompute", 0))
    plan = memory.Plan(tokens, o["ga"], recompute, False, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    return trainer


def lean(checkpoint, o, ds, config, callbacks):
    """The fast path at its leanest: all recomputed, inputs and embeddings in RAM."""
    trainer = trainer_of(checkpoint, o, ds, config, callbacks)
    layers = trainer.model.config.num_hidden_layers
    plan = memory.Plan(o["bs"] * o["seq"], o["ga"], layers, True, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    return trainer


def plain(checkpoint, o, ds, config, callbacks):
    """transformers and PEFT as they are, recompute=K layers."""
    trainer = trainer_of(checkpoint, o, ds, config, callbacks)
    tokens, recompute = o["bs"] * o["seq"], int(o.get("recompute", 0))
    plan = memory.Plan(tokens, o["ga"], recompute, False, False, memory.Memory())
    training.use_fast_path(trainer, plan)
    return trainer
