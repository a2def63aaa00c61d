"""The reward model against transformers' classifier and TRL's trainer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from helpers.training import UPDATES, InBackward, StopAt, random_head, trained
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer, SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.training import reward_model
from colab_utils.training.pairs import Collator, tokenize
from colab_utils.training.reward_model import FastRewardTrainer, ScoreHead

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


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

    def trainer(fast=True, quantized=True, head=None, test=None, **settings):
        set_seed(0)
        quantization = models.quantization_config() if quantized else None
        model = models.load_model("demo", quantization)
        found = FastRewardTrainer(
            model=model,
            head=head or ScoreHead(model.config.hidden_size),
            args=SFTConfig(
                **UPDATES | training.precision() | {"output_dir": folder} | settings
            ),
            train_dataset=Dataset.from_list(pairs),
            eval_dataset=test and Dataset.from_list(test),
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
    head = random_head()
    set_seed(0)
    model = classifier(head, LORA | {"task_type": "SEQ_CLS"})
    rows = [
        {f"{k}_ids": p[k]["input_ids"] for k in ("chosen", "rejected")} for p in pairs
    ]

    settings = UPDATES | {"output_dir": str(tmp_path), "max_length": None}
    trl = RewardTrainer(
        model=model,
        args=RewardConfig(**settings | training.precision()),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    begun = [make(fast, quantized=False, head=random_head()) for fast in (0, 1)]
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


@pytest.mark.slow
def test_fast_reward_trainer_trains_adapter_and_head_of_a_4_bit_model(make):
    trainer = make(max_steps=12)
    first = trained(trainer)
    assert trainer.head.weight.dtype == torch.float32
    trainer.train()
    last = trained(trainer)
    assert trainer.fast_path and first.keys() == last.keys()
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert all(weight.isfinite().all() for weight in last.values())
    assert losses(trainer)[0] == pytest.approx(math.log(2))  # all scores are 0
    assert losses(trainer)[-1] < 0.3
    optimized = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert id(trainer.head.weight) in optimized
    assert not hasattr(trainer.model, "score_head")


@pytest.mark.slow
def test_resumed_reward_training_equals_the_whole_one(make, tmp_path):
    whole = make(max_steps=4, output_dir=str(tmp_path / "whole"))
    whole.train()
    short = make(max_steps=4, output_dir=str(tmp_path / "cut"))
    short.add_callback(StopAt(2))
    short.train()
    resumed = make(max_steps=4, output_dir=str(tmp_path / "cut"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))
    assert losses(resumed) == losses(whole)
    expected = trained(whole)
    for name, weight in trained(resumed).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.slow
def test_checkpoint_without_its_head_is_refused(make, tmp_path):
    trainer = make(max_steps=1, save_strategy="steps", output_dir=str(tmp_path))
    trainer.train()
    (tmp_path / "checkpoint-1" / reward_model.FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no score_head\.safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not hasattr(trainer.model, "score_head")  # also after an error


@pytest.mark.slow
def test_best_model_has_its_head(make, tmp_path, pairs):
    """The first checkpoint has the higher loss, which counts as better here."""
    trainer = make(
        max_steps=2,
        learning_rate=0.01,
        gradient_accumulation_steps=1,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
        output_dir=str(tmp_path),
        test=pairs[:4],
    )
    trainer.train()
    best = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    stored = reward_model.load_head(best).weight
    assert torch.equal(trainer.head.weight, stored)
    later = reward_model.load_head(tmp_path / "checkpoint-2").weight
    assert not torch.equal(stored, later)


@pytest.mark.slow
def test_saved_reward_model_is_a_classifier_of_transformers(
    make, pairs, tokenizer, tmp_path
):
    """Adapter and head load into AutoModelForSequenceClassification: equal scores."""
    trainer = make(quantized=False, max_steps=6)
    trainer.train()
    training.save(trainer, tokenizer, tmp_path / "adapter")
    rows = [
        pair[name]["input_ids"] for name in ("chosen", "rejected") for pair in pairs
    ]
    found = reward_model.score(trainer.model, trainer.head, rows, batch_size=7)
    head = reward_model.load_head(tmp_path / "adapter")
    assert torch.equal(head.weight, trainer.head.weight)
    theirs = classifier(head)
    theirs.load_adapter(str(tmp_path / "adapter"))
    batch = Collator()(pairs)
    with torch.no_grad():
        logits = theirs.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    torch.testing.assert_close(found, logits[:, 0], rtol=1e-4, atol=1e-4)
    assert found[:24].min() > found[24:].max()  # it has learned something


@pytest.mark.slow
def test_hidden_states_are_equal_on_both_paths_and_any_padding(make, pairs):
    trainer = make(quantized=False)
    model = trainer.model.train()
    batch = Collator()(pairs[:5])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert not mask.all()
    fast = reward_model.hidden_states(model, ids, mask)
    last = reward_model.last_hidden(model, ids, mask)
    slow = reward_model.hidden_states(model.eval(), ids, mask)
    keep = mask.bool()
    torch.testing.assert_close(fast[keep], slow[keep], rtol=1e-4, atol=1e-4)
    assert not fast[~keep].any()
    ends = slow[torch.arange(len(ids)), mask.sum(1) - 1]
    torch.testing.assert_close(reward_model.last_hidden(model, ids, mask), ends)
    torch.testing.assert_close(last, ends, rtol=1e-4, atol=1e-4)
    order = mask.sort(dim=1, stable=True).indices  # padding first
    left, mask = ids.gather(1, order), mask.gather(1, order)
    for mode in (True, False):
        moved = reward_model.last_hidden(model.train(mode), left, mask)
        torch.testing.assert_close(moved, last, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_final_states_of_sorted_documents(make, monkeypatch):
    """The fast path sorts documents of other lengths; rows keep their order."""
    from colab_utils.fast import documents, patch

    trainer = make(quantized=False)
    model = trainer.model.train()
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(6, 40, dtype=torch.long)
    for row, length in enumerate((3, 40, 9, 1, 22, 40)):
        mask[row, :length] = 1
    ids = torch.randint(3, 1000, mask.shape, generator=generator) * mask
    whole = reward_model.hidden_states(model, ids, mask)
    last = reward_model.last_hidden(model, ids, mask)
    monkeypatch.setattr(documents, "attention_tokens", lambda tokens: 45)
    assert patch.flatten(ids, mask).order is not None
    assert torch.equal(reward_model.hidden_states(model, ids, mask) != 0, whole != 0)
    torch.testing.assert_close(reward_model.hidden_states(model, ids, mask), whole)
    torch.testing.assert_close(reward_model.last_hidden(model, ids, mask), last)


@pytest.mark.slow
def test_use_adapter_scores_with_one_adapter_and_restores_the_other(make, pairs):
    trainer = make(max_steps=6)
    trainer.train()
    model, rows = trainer.model, [pair["chosen"]["input_ids"] for pair in pairs]
    model.add_adapter("policy", LoraConfig(**LORA, task_type="CAUSAL_LM"))
    expected = reward_model.score(model, trainer.head, rows)
    model.set_adapter("policy")
    other = reward_model.score(model, trainer.head, rows)
    with reward_model.use_adapter(model, "default"):
        found = reward_model.score(model, trainer.head, rows)
    assert torch.equal(found, expected) and not torch.equal(other, expected)
    assert model.active_adapter == "policy"


@pytest.mark.slow
def test_train_a_named_adapter_next_to_another(make, pairs, tokenizer, tmp_path):
    """Only the active adapter changes, and only it is trainable; resume works."""
    model = models.load_model("demo", models.quantization_config())
    lora = LoraConfig(**LORA, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, adapter_name="policy")
    model.add_adapter("reward", lora)
    model.set_adapter("reward")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = FastRewardTrainer(
        model=model,
        head=ScoreHead(192),
        args=SFTConfig(
            **UPDATES | {"output_dir": str(tmp_path), "save_strategy": "steps"},
            **training.precision(),
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, PLAN)
    trainer.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".reward." in n}
    found = trained(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, weight in trained(trainer).items():
        assert torch.equal(weight, found[name]), name


def test_score_head_is_exact_under_autocast():
    head = random_head(width=64)
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    expected = hidden @ head.weight[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_score_refuses_a_row_without_tokens(model):
    with pytest.raises(ValueError, match="Row 2 has no token"):
        reward_model.score(model, ScoreHead(192), [[1, 5], []])


@pytest.mark.slow
def test_score_does_not_depend_on_the_batch(model):
    draw = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(3, 1000, (length,), generator=draw).tolist()
        for length in (9, 1, 30, 4, 17)
    ]
    head = ScoreHead(192, outputs=3)
    head.weight.data.normal_(generator=draw)
    whole = reward_model.score(model, head, rows)
    single = torch.cat([reward_model.score(model, head, [row]) for row in rows])
    assert whole.shape == (5, 3)
    torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-3)


FINITE = st.floats(-50, 50)


@given(FINITE, FINITE)
def test_pair_loss_is_the_negative_log_of_the_sigmoid(better, worse):
    found = reward_model.pair_loss(torch.tensor([better]), torch.tensor([worse]))
    expected = math.log1p(math.exp(worse - better))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_load_head_of_a_folder_without_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a reward model: train one"):
        reward_model.load_head(tmp_path)


def test_save_head_and_load_it(tmp_path):
    head = ScoreHead(8, outputs=2)
    head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    reward_model.save_head(head, tmp_path)
    assert set(load_file(tmp_path / reward_model.FILE)) == {"score.weight"}
    assert torch.equal(reward_model.load_head(tmp_path).weight, head.weight)


@pytest.mark.slow
def test_step_that_runs_out_of_memory_begins_again_with_the_head(make, capsys):
    expected, trainer = make(head=random_head()), make(head=random_head())
    training.use_fast_path(expected, dataclasses.replace(PLAN, recompute=6))
    expected.train()
    planted = InBackward(trainer, 2)
    trainer.train()
    assert "The step begins again" in capsys.readouterr().out
    assert planted.partial > 10 and planted.passes == 8
    weights = trained(expected)
    for name, weight in trained(trainer).items():
        assert torch.equal(weight, weights[name]), name
    for name in ("loss", "margin", "accuracy"):
        found, wanted = (
            [e[name] for e in one.state.log_history if name in e]
            for one in (trainer, expected)
        )
        assert found == wanted
