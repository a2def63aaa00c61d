"""Compare the loss over 200 steps of QLoRA on the reference path and on the fast path.

    python bench/curve.py

The difference of the two paths is compared with the difference of two seeds. Runs on
the demo model, on a CPU in three minutes; writes bench/results/curve.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig

from colab_utils import data, demo, memory, models, runtime, training
from colab_utils.training.sft import FastSFTTrainer

runtime.quiet()
OUT = Path(__file__).parent / "results" / "curve.json"
STEPS = 200


def losses(fast: bool, seed: int) -> list[float]:
    """Train the demo model, and return the loss of each step."""
    set_seed(seed)
    rows = [{"messages": data.to_messages(row)} for row in demo.questions()]
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = FastSFTTrainer(
        model=models.load_model("demo", models.quantization_config()),
        processing_class=models.load_tokenizer("demo"),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=1,
            max_steps=STEPS,
            max_length=512,
            packing=True,
            assistant_only_loss=True,
            learning_rate=1e-3,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **training.precision(),
        ),
    )
    training.float32_adapters(trainer)
    if fast:
        plan = memory.Plan(512, 1, 0, False, True, memory.Memory())
        training.use_fast_path(trainer, plan)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    runs = {
        "reference": losses(False, 0),
        "fast": losses(True, 0),
        "another seed": losses(False, 1),
    }
    reference, fast, other = runs.values()

    def difference(a: list[float], b: list[float]) -> float:
        return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)

    found = {
        "fast": difference(reference, fast),
        "another seed": difference(reference, other),
    }
    print("mean difference from the reference path:", found)
    print(f"loss of the last 20 steps: {[sum(r[-20:]) / 20 for r in runs.values()]}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"mean_difference": found, "losses": runs}) + "\n")


if __name__ == "__main__":
    main()
