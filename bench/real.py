"""Compare the course's training of a real model with plain TRL and PEFT.

    DATASET=openai/gsm8k:main python bench/real.py

SmolLM2-135M-Instruct (tools/real_model.py) is trained on the same rows with the same
seed by both. TRL finds the trained tokens by `{% generation %}` marks, which are
written into the model's chat template here; the course finds them without marks. Runs
on a CPU, all in turns; writes bench/results/real.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from colab_utils import data, memory, models, runtime, training
from colab_utils.training.sft import FastSFTTrainer
from tools import real_model

runtime.quiet()
OUT = Path(__file__).parent / "results" / "real.json"
TOKENS = 512
# The template's line for a message, without and with marks around what is trained.
LINE = (
    "{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}"
)
MARKED = (
    "{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}"
    "{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}"
)


class StepTimes(TrainerCallback):
    """Record the CPU seconds of each step: other programs do not change them much."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def train(rows: list[data.Row], method: str, fast: bool, seed: int) -> dict[str, Any]:
    """Train one epoch; return the loss, the tokens and the seconds of each step."""
    folder = str(real_model.build())
    tokenizer = models.load_tokenizer(folder)
    if fast:
        dataset = Dataset.from_list(data.tokenize(rows, tokenizer))
    else:
        assert LINE in tokenizer.chat_template, "the model has another chat template"
        tokenizer.chat_template = tokenizer.chat_template.replace(LINE, MARKED)
        dataset = Dataset.from_list([{"messages": row["messages"]} for row in rows])
    set_seed(seed)
    quantization = models.quantization_config() if method == "qlora" else None
    times = StepTimes()
    trainer = (FastSFTTrainer if fast else SFTTrainer)(
        model=models.load_model(folder, quantization),
        processing_class=tokenizer,
        train_dataset=dataset,
        callbacks=[times],
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=1,
            num_train_epochs=1,
            max_length=TOKENS,
            packing=True,
            assistant_only_loss=not fast,  # ours has the mask already
            learning_rate=2e-4,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
            dataloader_pin_memory=False,
            **training.precision(),
        ),
    )
    training.float32_adapters(trainer)
    if fast:
        plan = memory.Plan(TOKENS, 1, 0, False, True, memory.Memory())
        training.use_fast_path(trainer, plan)
    packed = list(trainer.train_dataset)
    tokens = [len(row["input_ids"]) for row in packed]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = times.seconds
    # The first step is left out: it allocates.
    mean = sum(tokens) / len(tokens)
    speed = mean * (len(seconds) - 1) / sum(seconds[1:])
    return {
        "losses": losses,
        "tokens": sum(tokens),
        "tokens_per_second": speed,
        "batches": [(row["input_ids"], row["assistant_masks"]) for row in packed],
    }


def compare(
    rows: list[data.Row], method: str, repeats: int, seed: int = 0
) -> dict[str, Any]:
    """Train in turns on both paths; return the speeds and how far the losses differ."""
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "fast": []}
    for _ in range(repeats):
        for name, found in runs.items():
            found.append(train(rows, method, name == "fast", seed))
            speed = found[-1]["tokens_per_second"]
            print(f"{method}, {name}: {speed:.0f} tokens a CPU second", flush=True)
    assert runs["plain"][0]["batches"] == runs["fast"][0]["batches"], "other tokens"
    other = train(rows, method, False, seed + 1)["losses"]
    plain, fast = (runs[name][0]["losses"] for name in ("plain", "fast"))
    again = runs["plain"][-1]["losses"]

    def apart(a: list[float], b: list[float]) -> dict[str, float]:
        gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
        return {"mean": sum(gaps) / len(gaps), "max": max(gaps)}

    speeds = {
        name: sorted(one["tokens_per_second"] for one in found)
        for name, found in runs.items()
    }
    batches = runs["plain"][0]["batches"]
    return {
        "steps": len(plain),
        "trained_tokens": sum(sum(mask) for _, mask in batches),
        "tokens": runs["plain"][0]["tokens"],
        "tokens_per_cpu_second": speeds,
        "ratio": statistics.median(speeds["fast"]) / statistics.median(speeds["plain"]),
        "difference": {
            "fast": apart(plain, fast),
            "plain again": apart(plain, again),
            "another seed": apart(plain, other),
        },
        "losses": {"plain": plain, "fast": fast, "another seed": other},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, _ = data.load(os.environ.get("DATASET", "openai/gsm8k:main"))
    rows = random.Random(0).sample(rows, options.rows)
    found = {
        "rows": options.rows,
        "methods": {m: compare(rows, m, options.repeats) for m in options.methods},
    }
    for method, result in found["methods"].items():
        print(method, result["tokens_per_cpu_second"], result["difference"])
    OUT.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
