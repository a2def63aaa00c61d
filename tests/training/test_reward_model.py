"""The reward model against transformers' classifier and TRL's trainer."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from helpers.training import ON_CPU, StopAt
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer, SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.training import reward_model
from colab_utils.training.preferences import Collator, tokenize
from colab_utils.training.reward_model import FastRewardTrainer, ScoreHead

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
SETTINGS = ON_CPU | {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
}


@pytest.fixture(scope="module")
def pairs(tokenizer) -> list[dict]:
    """Short right answers against wrong ones that ramble, as tokens."""
    asked = [data.to_row(raw, 1) for raw in demo.questions(wordings=1)[:24]]
    found = []
    for line, (row, other) in enumerate(zip(asked, asked[7:] + asked[:7], strict=True)):
        pair = {"prompt": data.prompt_of(row), "chosen": data.answer_of(row)}
        pair["rejected"] = f"Well, it could be {data.answer_of(other)}, who knows."
        found.append(data.to_row(pair, line + 1))
    return tokenize(found, tokenizer)


@pytest.fixture(scope="module")
def make(pairs, tokenizer, tmp_path_factory):
    """Return a function that builds a reward trainer, in 4 bits or float32."""
    folder = str(tmp_path_factory.mktemp("reward"))

    def trainer(fast=True, quantized=True, head=None, **given) -> FastRewardTrainer:
        set_seed(0)
        quantization = models.quantization_config() if quantized else None
        model = models.load_model("demo", quantization)
        found = FastRewardTrainer(
            model=model,
            head=head or ScoreHead(model.config.hidden_size),
            args=SFTConfig(
                **SETTINGS | training.precision() | {"output_dir": folder} | given
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        )
        training.float32_adapters(found)
        if fast:
            training.use_fast_path(found, PLAN)
        else:
            training.use_reference_path(found)
        return found

    return trainer


def random_head(width: int) -> ScoreHead:
    head = ScoreHead(width)
    head.weight.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return head


def trained(trainer) -> dict[str, torch.Tensor]:
    """Return copies of the trained weights: the adapter's and the head's."""
    named = [*trainer.model.named_parameters(), ("head", trainer.head.weight)]
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def classifier(head: ScoreHead, lora: dict | None = None):
    """Return transformers' classifier of the demo model, with the head's weight."""
    found = AutoModelForSequenceClassification.from_pretrained(
        demo.MODEL, num_labels=1, pad_token_id=0, dtype=torch.float32
    )
    found.score.weight.data = head.weight.data.clone()
    return get_peft_model(found, LoraConfig(**lora)) if lora else found


@pytest.mark.slow
def test_fast_reward_trainer_learns_what_trls_does(make, pairs, tokenizer, tmp_path):
    """Losses, margins and gradients of three updates, in float32, on both paths."""
    head = random_head(192)
    set_seed(0)
    model = classifier(head, LORA | {"task_type": "SEQ_CLS"})
    rows = [
        {f"{k}_ids": p[k]["input_ids"] for k in ("chosen", "rejected")} for p in pairs
    ]

    settings = SETTINGS | {"output_dir": str(tmp_path), "max_length": None}
    trl = RewardTrainer(
        model=model,
        args=RewardConfig(**settings | training.precision()),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    begun = [make(fast, quantized=False, head=random_head(192)) for fast in (0, 1)]
    start = {
        n.replace("score.modules_to_save.default", "head"): p
        for n, p in trl.model.named_parameters()
    }
    for ours in begun:  # the same adapter: A is random
        for name, weight in ours.model.named_parameters():
            if weight.requires_grad:
                weight.data = start[name].detach().clone()
    trl.train()
    names = ("loss", "margin", "accuracy", "mean_reward", "grad_norm")
    expected = [e for e in trl.state.log_history if "loss" in e]
    assert len(expected) == 3
    for ours in begun:
        ours.train()
        log = [e for e in ours.state.log_history if "loss" in e]
        for found, wanted in zip(log, expected, strict=True):
            assert [found[n] for n in names] == pytest.approx(
                [wanted[n] for n in names], rel=1e-4, abs=1e-5
            )
