"""One real training step for each kind of row, with the trainer that consumes it.

The rows are read from a saved dataset, as the notebooks read them.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.training import ON_CPU
from peft import LoraConfig

from colab_utils import data, models, training
from colab_utils.models.sources import Source

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of Peru?"
WEIGHTS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "It is Paris.", "weight": 0},
    {"role": "user", "content": "Try again."},
    {"role": "assistant", "content": "Lima", "weight": 1},
]
RAW = {
    "instruction": [{"messages": WEIGHTS}, {"prompt": QUESTION, "completion": "Lima"}],
    "completion": [{"text": "Lima is a town in Peru."}, {"text": "Rome is old."}],
    "fill-in-the-middle": [
        {"prefix": "Lima is ", "middle": "the capital", "suffix": " of Peru."},
        {"prefix": "Rome ", "middle": "is", "suffix": " old."},
    ],
    "classification": [
        {"text": "Lima is fine.", "label": "good"},
        {"text": "Rome is too hot for me.", "label": "bad"},
    ],
    "preference": [
        {"prompt": QUESTION, "chosen": "Lima", "rejected": "It is Paris."},
        {"prompt": "And of Italy?", "chosen": "Rome", "rejected": "Lima"},
    ],
}
SETTINGS = ON_CPU | {
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves the rows of a kind, and reads them."""

    def rows(kind: str) -> list[data.Row]:
        folder = tmp_path_factory.mktemp("data") / "set"
        found = [data.to_row(raw, line) for line, raw in enumerate(RAW[kind], 1)]
        assert {data.kind_of(row) for row in found} == {kind}
        data.save(folder, {"train": found}, [], "A card.")
        return data.read(folder, "train")

    return rows


def train(trainer) -> float:
    """Train one step, check that all trainable weights changed, return its loss."""
    training.float32_adapters(trainer)
    named = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    before = {name: parameter.detach().clone() for name, parameter in named}
    trainer.train()
    # Of a new adapter only B changes in the first step: its A has no gradient yet.
    frozen = [name for name, p in named if torch.equal(p, before[name])]
    assert before and all("lora_A" in name for name in frozen)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(map(math.isfinite, losses)) and losses
    return losses[0]


def lora(task: str, **settings):
    return LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type=task, **settings
    )


def reward_model(labels: int, tokenizer):
    """Return the demo model with a head that gives `labels` numbers for a text."""
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        Source("demo").path, num_labels=labels, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def mean_loss(model, found: list[data.Tokens]) -> float:
    """Return the mean of -log p over all trained tokens, one row at a time."""
    losses = []
    with torch.no_grad():
        for tokens in found:
            ids = torch.tensor([tokens["input_ids"]])
            mask = torch.tensor(tokens["assistant_masks"][1:], dtype=torch.bool)
            logits = model(input_ids=ids).logits[0, :-1].float()
            losses += F.cross_entropy(logits, ids[0, 1:], reduction="none")[mask]
    return torch.stack(losses).mean().item()


def scores(model, sequences: list[list[int]]) -> torch.Tensor:
    """Return the outputs of a model with a head, one sequence at a time."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["instruction", "completion", "fill-in-the-middle"])
def test_sft_trains_what_tokenize_marks(saved, make_trainer, tokenizer, kind):
    rows = saved(kind)
    tokens = data.tokenize(rows, tokenizer)
    settings = SETTINGS | {"assistant_only_loss": False, "max_length": None}
    trainer = make_trainer("lora", rows=tokens, **settings)
    expected = mean_loss(trainer.model, tokens)
    assert train(trainer) == pytest.approx(expected, rel=1e-4)


def test_sft_reads_an_answer_of_weight_0_and_does_not_train_it(
    saved, make_trainer, tokenizer
):
    """The label of each of its tokens is -100 in the trainer's batch."""
    tokens = data.tokenize(saved("instruction"), tokenizer)
    settings = SETTINGS | {"assistant_only_loss": False, "max_length": None}
    trainer = make_trainer("lora", rows=tokens[:1], **settings)
    (batch,) = trainer.get_train_dataloader()
    trained = batch["labels"][batch["labels"] != -100]
    assert tokenizer.decode(trained).strip() == "Lima </s>"
    assert "It is Paris." in tokenizer.decode(batch["input_ids"][0])


def test_dpo_trains_the_answers_of_a_preference_row(saved, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = saved("preference")
    settings = SETTINGS | training.precision() | {"max_steps": 2}
    trainer = DPOTrainer(
        model=models.load_model("demo"),
        args=DPOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora("CAUSAL_LM"),
    )
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        for ours, answer in zip(
            data.encodings(row, tokenizer), ("chosen", "rejected"), strict=True
        ):
            reply = theirs[f"{answer}_ids"]
            assert ours["input_ids"] == theirs["prompt_ids"] + reply
            assert sum(ours["assistant_masks"]) == len(reply)
    # A new adapter changes nothing: the policy is the reference, and the loss ln 2.
    assert train(trainer) == pytest.approx(math.log(2), abs=1e-4)
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[1] < losses[0] - 1e-3


def test_reward_trainer_trains_on_a_preference_row(saved, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = saved("preference")
    trainer = RewardTrainer(
        model=reward_model(1, tokenizer),
        args=RewardConfig(output_dir=str(tmp_path), **SETTINGS | training.precision()),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora("SEQ_CLS", modules_to_save=["score"]),
    )
    pairs = [data.encodings(row, tokenizer) for row in rows]
    chosen, rejected = (
        scores(trainer.model, [pair[i]["input_ids"] for pair in pairs]) for i in (0, 1)
    )
    expected = -F.logsigmoid(chosen - rejected).mean().item()
    assert train(trainer) == pytest.approx(expected, rel=1e-4)


def test_sequence_classification_trains_on_a_classification_row(
    saved, tokenizer, tmp_path
):
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    rows = saved("classification")
    labels = sorted({row["label"] for row in rows})
    found = [
        {
            "input_ids": data.encodings(row, tokenizer)[0]["input_ids"],
            "labels": labels.index(row["label"]),
        }
        for row in rows
    ]
    trainer = Trainer(
        model=reward_model(len(labels), tokenizer),
        args=TrainingArguments(
            output_dir=str(tmp_path), **SETTINGS | training.precision()
        ),
        train_dataset=Dataset.from_list(found),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    outputs = scores(trainer.model, [row["input_ids"] for row in found])
    targets = torch.tensor([row["labels"] for row in found])
    expected = F.cross_entropy(outputs, targets).item()
    assert train(trainer) == pytest.approx(expected, rel=1e-4)
