"""Train the rows of a dataset of 01_create_dataset with another trainer.

    python bench/rivals/train.py unsloth DATASET OUT --model NAME
    python bench/rivals/train.py trl DATASET OUT --model NAME

`unsloth` has the settings of Unsloth's own notebooks, and needs an environment with
Unsloth. `trl` has the same settings in plain TRL and PEFT, on a GPU or a CPU. Rows,
tokens, epochs and seed are those of the course, and only the answers are trained.
Writes an adapter, training_log.json and recipe.json to OUT. Then `score.py` measures
the held-out loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

if "unsloth" in sys.argv[1:2]:
    import unsloth  # noqa: F401  (it patches the other libraries, so it comes first)

sys.path[:0] = [str(Path(__file__).parents[2])]

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from colab_utils import data, memory, models, recipe

GPU = torch.cuda.is_available()
RANK = 16
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATE = 2e-4


def settings(epochs: float, seed: int, max_tokens: int, folder: str) -> dict[str, Any]:
    """Return the keywords of SFTConfig: the settings of Unsloth's notebooks.

    Their `max_steps=60` is for a demonstration; the comment next to it in the notebooks
    names an epoch for a full run. Seed and epochs are the course's.
    """
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "warmup_steps": 5,
        "num_train_epochs": epochs,
        "learning_rate": RATE,
        "logging_steps": 1,
        "optim": "adamw_8bit" if GPU else "adamw_torch",
        "weight_decay": 0.001,
        "lr_scheduler_type": "linear",
        "packing": False,
        "max_length": max_tokens,
        "seed": seed,
        "report_to": "none",
        "save_strategy": "no",
        "fp16": GPU and not bfloat16(),
        "bf16": GPU and bfloat16(),
        "use_cpu": not GPU,
        "dataloader_pin_memory": GPU,
        "disable_tqdm": True,
    }


def bfloat16() -> bool:
    """Return whether the GPU has bfloat16: a T4 emulates it only."""
    return torch.cuda.get_device_capability() >= (8, 0)


def unsloth_trainer(
    model: str, rows: list[data.Tokens], config: dict[str, Any]
) -> SFTTrainer:
    """Build the trainer as Unsloth's notebooks do."""
    from unsloth import FastLanguageModel

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model, max_seq_length=config["max_length"], dtype=None, load_in_4bit=True
    )
    adapted = FastLanguageModel.get_peft_model(
        loaded,
        r=RANK,
        target_modules=LINEAR,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=config["seed"],
    )
    labelled = [
        {
            "input_ids": row["input_ids"],
            "labels": [
                token if trained else -100
                for token, trained in zip(
                    row["input_ids"], row["assistant_masks"], strict=True
                )
            ],
        }
        for row in rows
    ]
    return SFTTrainer(
        model=adapted,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(labelled),
        args=SFTConfig(**config),
    )


def trl_trainer(
    model: str,
    rows: list[data.Tokens],
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> SFTTrainer:
    """Build TRL's own trainer with the same settings.

    TRL alone stops at the first step of a float16 run: it casts the adapters to
    bfloat16. They are cast to float32 here.
    """
    from peft import LoraConfig

    from colab_utils import training

    set_seed(config["seed"])
    trainer = SFTTrainer(
        model=models.load_model(model, models.quantization_config()),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        args=SFTConfig(**config, gradient_checkpointing=True),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM"
        ),
    )
    training.float32_adapters(trainer)
    return trainer


def more_versions() -> dict[str, str]:
    """Return the versions of packages that a recipe does not name."""
    from importlib import metadata

    found = {}
    for name in ("unsloth", "unsloth_zoo", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def train(options: argparse.Namespace) -> None:
    """Train, and write the adapter and its numbers."""
    dataset, out = options.dataset, options.out
    made, rows = recipe.read(dataset), data.read(dataset, "train")
    parameters = made["parameters"]
    tokenizer = models.load_tokenizer(options.model, parameters["template"])
    tokens = data.tokenize(rows, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(
            options.epochs, options.seed, parameters["max_tokens"], folder
        )
        if options.trainer == "unsloth":
            trainer = unsloth_trainer(options.model, tokens, config)
        else:
            trainer = trl_trainer(options.model, tokens, config, tokenizer)
        memory.release()
        result = trainer.train()
        peak = memory.peak()
        out.mkdir(parents=True)
        trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (out / "training_log.json").write_text(json.dumps(log, indent=1))
    count = round(options.epochs * sum(len(row["input_ids"]) for row in tokens))
    recipe.write(
        out,
        kind="adapter",
        name=out.name,
        trainer=options.trainer,
        method="qlora",
        base_model=options.model,
        model=options.model,
        data=recipe.sha256(dataset / "train.jsonl"),
        rank=RANK,
        rate=RATE,
        seed=options.seed,
        epochs=options.epochs,
        training={
            "tokens": count,
            "seconds": result.metrics["train_runtime"],
            "peak_gib": peak,
        },
        more_versions=more_versions(),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trainer", choices=("unsloth", "trl"))
    parser.add_argument("dataset", type=Path, help="a folder of 01_create_dataset")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
