"""Train a reward model of the shape of Llama 2 7B under a T4's limits, and score.

    python bench/rewards.py --shape         # on a GPU
    python bench/rewards.py --shape --tiny  # a tiny shape, also on a CPU

A pair has two random sequences of 256 tokens. The head reads their last tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig
from trl import SFTConfig

from colab_utils import memory, models, training
from colab_utils.training.pairs import ANSWERS
from colab_utils.training.reward_model import FastRewardTrainer, ScoreHead, score

LONGEST, UPDATE, STEPS = 256, 8, 12  # tokens of a sequence, pairs of an update, updates
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
TINY = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 1024}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def peak() -> float:
    """Return the largest allocated memory in GiB since the last call; 0 on a CPU."""
    found = torch.cuda.max_memory_allocated() / memory.GIB
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return round(found, 2)


def shape(sizes: dict[str, int]) -> dict[str, Any]:
    """Train a few updates and score; return the plan and what was measured."""
    on_gpu = emulate.t4()
    config = AutoConfig.for_model("llama", **sizes)
    optimizer = "adamw_8bit" if on_gpu else "adamw_torch"
    update, budget = UPDATE * 2 * LONGEST, (14.56 - 0.3) * memory.GIB
    given = {"longest": 2 * LONGEST, "update": update, "budget": budget}
    plan = memory.plan(config, "qlora", 16, **given, gpu=on_gpu, optimizer=optimizer)
    size = max(1, plan.tokens // (2 * LONGEST))
    rows = torch.randint(3, sizes["vocab_size"], (STEPS * UPDATE, 2, LONGEST)).tolist()
    part = {"assistant_masks": [0] * (LONGEST // 2) + [1] * (LONGEST // 2)}
    pairs = [
        {"index": i} | {k: part | {"input_ids": row[k == "chosen"]} for k in ANSWERS}
        for i, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        emulate.random_model(config, path := Path(folder, "model"))
        if on_gpu:
            torch.cuda.empty_cache()
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=UPDATE // size,
            max_steps=STEPS,
            learning_rate=1e-4,
            gradient_checkpointing=False,
            optim=optimizer,
            save_strategy="no",
            report_to="none",
            use_cpu=not on_gpu,
            **training.precision(),
        )
        trainer = FastRewardTrainer(
            model=models.load_model(str(path), models.quantization_config()),
            head=ScoreHead(sizes["hidden_size"]),
            args=settings,
            train_dataset=Dataset.from_list(pairs),
            processing_class=models.load_tokenizer("demo"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, plan)
    assert trainer.fast_path
    trainer.train()  # the first updates compile kernels
    peak()
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "pairs_a_batch": size,
        "recompute": plan.recompute,
        "planned_gib": round(plan.cost.total / memory.GIB, 2),
        "peak_gib": peak(),
        "ms_a_pair": round(1000 * seconds / len(pairs), 2),
        "loss": round(loss, 3),
        "head_moved": bool(trainer.head.weight.any()),
    }
    start = time.perf_counter()
    score(trainer.model, trainer.head, [row[0] for row in rows])
    seconds = time.perf_counter() - start
    result["ms_a_score"] = round(1000 * seconds / len(rows), 2)
    return result | {"peak_gib_of_scoring": peak()}


def main() -> None:
    """Measure, print the result, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="store_true", help="the step of Llama 2 7B")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a CPU")
    parser.add_argument("--out", type=Path, default=emulate.RESULTS / "rewards_7b.json")
    options = parser.parse_args()
    result = shape(TINY if options.tiny else LLAMA)
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
