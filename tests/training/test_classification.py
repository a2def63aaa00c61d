"""The classifier against transformers' own, and its refusals."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from helpers.training import UPDATES, StopAt, random_head, trained
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.demo import sentences
from colab_utils.training import classification
from colab_utils.training.classification import FastClassificationTrainer
from colab_utils.training.pairs import micro_batches

PLAN = memory.Plan(512, 1, 2, False, True, memory.Memory())
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def rows() -> list[data.Row]:
    found = sentences.labeled(wordings=1)[:48]
    return [data.to_row(raw, n) for n, raw in enumerate(found, 1)]


@pytest.fixture(scope="module")
def tokens(rows, tokenizer) -> list[dict]:
    names = classification.classes(rows)
    return classification.tokenize(rows, tokenizer, names, 512)


@pytest.fixture(scope="module")
def make(tokens, tokenizer, tmp_path_factory):
    """Return a function that builds a trainer, in 4 bits or float32."""
    folder = str(tmp_path_factory.mktemp("classes"))

    def trainer(fast=True, quantized=True, **settings):
        set_seed(0)
        quantization = models.quantization_config() if quantized else None
        found = FastClassificationTrainer(
            model=models.load_model("demo", quantization),
            head=random_head(6),
            args=SFTConfig(
                **UPDATES | training.precision() | {"output_dir": folder} | settings
            ),
            train_dataset=Dataset.from_list(tokens),
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


def log(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_classifier_learns_what_the_one_of_transformers_does(
    make, tokens, tokenizer, tmp_path
):
    """Losses and gradients of three updates, in float32, on both paths.

    Theirs has no accumulation: its sum of two micro-batches would not be halved.
    """
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    model = AutoModelForSequenceClassification.from_pretrained(
        demo.MODEL, num_labels=6, pad_token_id=0, dtype=torch.float32
    )
    model.score.weight.data = random_head(6).weight.data.clone()
    set_seed(0)
    model = get_peft_model(model, LoraConfig(**LORA, task_type="SEQ_CLS"))
    theirs = Trainer(
        model=model,
        args=TrainingArguments(
            **UPDATES | whole | {"output_dir": str(tmp_path)}, **training.precision()
        ),
        train_dataset=Dataset.from_list(tokens).rename_column("label", "labels"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    start = {
        n.replace("score.modules_to_save.default", "head"): p
        for n, p in model.named_parameters()
    }
    begun = [make(fast, quantized=False) for fast in (False, True)]
    for ours in begun:  # the same adapter: A is random
        for name, weight in ours.model.named_parameters():
            if weight.requires_grad:
                weight.data = start[name].detach().clone()
    theirs.train()
    assert len(log(theirs)) == 3
    for ours in begun:
        ours.train()
        for found, wanted in zip(log(ours), log(theirs), strict=True):
            assert [found[n] for n in ("loss", "grad_norm")] == pytest.approx(
                [wanted[n] for n in ("loss", "grad_norm")], rel=1e-4
            )


@pytest.mark.slow
def test_classifier_trains_adapter_and_head_of_a_4_bit_model(make, tokens):
    trainer = make(max_steps=40)
    first = trained(trainer)
    trainer.train()
    last = trained(trainer)
    assert trainer.fast_path and trainer.head.weight.dtype == torch.float32
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert log(trainer)[-1]["loss"] < 0.5 < log(trainer)[0]["loss"]
    assert log(trainer)[-1]["accuracy"] > 0.8
    found = classification.probabilities(trainer.model, trainer.head, tokens)
    assert found.shape == (48, 6)
    torch.testing.assert_close(found.sum(1), torch.ones(48))
    right = found.argmax(1) == torch.tensor([row["label"] for row in tokens])
    assert right.float().mean() > 0.9


@pytest.mark.slow
def test_resumed_classifier_equals_the_whole_one(make, tmp_path):
    whole = make(max_steps=4, output_dir=str(tmp_path / "whole"))
    whole.train()
    short = make(max_steps=4, output_dir=str(tmp_path / "cut"))
    short.add_callback(StopAt(2))
    short.train()
    resumed = make(max_steps=4, output_dir=str(tmp_path / "cut"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))
    expected = trained(whole)
    for name, weight in trained(resumed).items():
        assert torch.equal(weight, expected[name]), name


def test_a_text_is_read_as_the_tokenizer_alone_reads_it(tokenizer, rows, tokens):
    """So a pipeline, which knows nothing of rows, reads the same."""
    for row, found in zip(rows, tokens, strict=True):
        assert found["input_ids"] == tokenizer(row["text"])["input_ids"]


def test_long_texts_and_unknown_labels_are_counted(tokenizer, capsys):
    named = [("a b c d e f g h", "x"), ("b", "new\nlabel"), ("c", "x"), ("d", "old")]
    rows = [{"text": text, "label": label} for text, label in named]
    found = classification.tokenize(rows, tokenizer, ["x", "y"], 4)
    assert [row["label"] for row in found] == [0, -1, 0, -1]
    assert max(len(row["input_ids"]) for row in found) == 4
    said = capsys.readouterr().out
    assert "1 texts of 4 are cut after 4 tokens" in said
    assert "has the label 'new\\nlabel' or 1 others: 2 rows count as wrong" in said


def test_known_labels_and_short_texts_print_nothing(tokenizer, capsys):
    rows = [{"text": "a", "label": "x"}]
    classification.tokenize(rows, tokenizer, ["x", "y"], 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("longest", [0, -1])
def test_texts_that_are_cut_to_nothing_are_refused(longest, tokenizer):
    with pytest.raises(ValueError, match=f"cut after {longest} tokens"):
        classification.tokenize([], tokenizer, ["x", "y"], longest)


def test_a_text_without_tokens_is_refused(tokenizer, monkeypatch):
    """As a tokenizer without a BOS token reads an empty text."""
    monkeypatch.setattr(data, "encodings", lambda *_: [{"input_ids": []}])
    with pytest.raises(ValueError, match="line 7 has no token"):
        classification.tokenize(
            [{"text": "", "label": "x", "line": 7}], tokenizer, [], 4
        )


def test_classes_are_sorted():
    rows = [{"text": "a", "label": label} for label in ("c", "b", "a", "b")]
    assert classification.classes(rows) == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_without_an_output_is_refused(label, tokenizer, tmp_path):
    rows = [{"input_ids": [1, 2], "label": 0}, {"input_ids": [1, 2], "label": label}]
    with pytest.raises(ValueError, match=rf"1 rows have a label such as {label}"):
        FastClassificationTrainer(
            model=models.load_model("demo"),
            head=random_head(6),
            args=SFTConfig(output_dir=str(tmp_path), use_cpu=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        ([{"text": "a", "label": "b"}] * 3, "all 3 have 'b'"),
        ([{"text": "a", "label": "b"}, {"text": "a", "line": 7}], "Line 7 is a compl"),
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        classification.classes(rows)


def test_micro_batches_count_on_the_longest_rows():
    assert micro_batches([1, 1, 1, 300, 300], 600, 5) == (2, 3)


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    tokens=st.integers(300, 4000),
    update=st.integers(1, 64),
)
def test_micro_batches_fit_and_make_an_update(sizes, tokens, update):
    rows, times = micro_batches(sizes, tokens, update)
    assert sum(sorted(sizes)[-rows:]) <= tokens
    assert update <= rows * times < update + times  # one row less were too few


def test_labeled_sentences_never_name_the_continent():
    rows = sentences.labeled(wordings=2)
    assert len(rows) == 197 * 4 * 2
    places = {fact["country"]: fact["continent"] for fact in demo.facts()}
    for row in rows:
        assert row["label"] == places[row["group"]]
        words = row["text"].replace(row["group"], "").rstrip(".").split()
        assert row["label"] not in words  # "African" may be
