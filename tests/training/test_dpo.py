"""DPO on the fast path against TRL's trainer, and the losses against their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from helpers.training import UPDATES, InBackward, StopAt
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import LlamaConfig, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.training.pairs import Collator, batches, tokenize
from colab_utils.training.preferences import FastDPOTrainer, loss_of, scores

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())


@pytest.fixture(scope="module")
def rows() -> list[data.Row]:
    """Short right answers against long ones that ramble."""
    asked = [data.to_row(raw, 1) for raw in demo.questions(wordings=1)[:24]]
    found = []
    for line, (row, other) in enumerate(zip(asked, asked[7:] + asked[:7], strict=True)):
        pair = {"prompt": data.prompt_of(row), "chosen": data.answer_of(row)}
        pair["rejected"] = f"Well, it could be {data.answer_of(other)}, who knows."
        found.append(data.to_row(pair, line + 1))
    return found


@pytest.fixture(scope="module")
def make(rows, tokenizer, tmp_path_factory):
    """Return a function that builds our trainer or TRL's on the same rows."""
    folder = str(tmp_path_factory.mktemp("dpo"))

    def trainer(kind, config, fast=False, given=None, seed=0, **more):
        set_seed(seed)  # of A
        lora = LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        dataset = Dataset.from_list(
            tokenize(rows, tokenizer)
            if kind is FastDPOTrainer
            else [{x: row[x] for x in ("prompt", "chosen", "rejected")} for row in rows]
        )
        found = kind(
            model=models.load_model("demo", models.quantization_config()),
            args=config(
                **UPDATES
                | training.precision()
                | {"output_dir": folder}
                | (given or {}),
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora,
            **more,
        )
        training.float32_adapters(found)
        if kind is FastDPOTrainer:
            (training.use_fast_path if fast else _slow)(found, PLAN)
        return found

    def _slow(found, plan):
        training.use_reference_path(found)

    return trainer


def history(trainer) -> list[tuple[float, float, float]]:
    """Return loss, margin and gradient norm of each step."""
    names = ("loss", "rewards/margins", "grad_norm")
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [tuple(entry[name] for name in names) for entry in log]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "trls"),
    [
        ({}, {}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"sft": 0.2}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
    ],
    ids=["dpo", "ipo", "dpo-and-sft"],
)
def test_fast_dpo_trainer_learns_what_trls_does(make, ours, trls):
    trl = make(DPOTrainer, DPOConfig, given={**trls, "max_length": None})
    trl.train()
    expected = history(trl)
    assert len(expected) == 3
    for fast in (False, True):
        trainer = make(FastDPOTrainer, SFTConfig, fast=fast, **ours)
        trainer.score_reference()
        trainer.train()
        for found, wanted in zip(history(trainer), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_loss_of_at_the_start_is_ln_2():
    same = torch.tensor([[-3.0, -9.0], [-2.0, -2.0]])
    found = loss_of("sigmoid", same, same, torch.ones(2, 2), 0.1)
    assert found.tolist() == pytest.approx([math.log(2)] * 2)


def test_loss_of_orpo_is_that_of_its_paper():
    policy, lengths = torch.tensor([[-2.0, -6.0]]), torch.tensor([[4, 3]])
    p, q = math.exp(-0.5), math.exp(-2.0)  # means of tokens
    ratio = math.log(p / (1 - p)) - math.log(q / (1 - q))
    expected = 0.5 - 0.1 * math.log(1 / (1 + math.exp(-ratio)))
    assert loss_of("orpo", policy, None, lengths, 0.1).item() == pytest.approx(expected)


@pytest.mark.slow
def test_reference_is_computed_in_the_precision_of_training(make):
    """So the first step has no margin, as the model is its own reference then."""
    trainer = make(FastDPOTrainer, SFTConfig, given={"max_steps": 1, "bf16": True})
    trainer.score_reference()
    trainer.train()
    # 3e-5 is seen: batches of other rows. Without autocast it is 8e-3.
    assert history(trainer)[0][1] == pytest.approx(0, abs=5e-4)


@pytest.mark.slow
def test_reference_is_kept_for_the_same_rows_and_adapter(make, tmp_path, capsys):
    file = tmp_path / "reference.safetensors"
    first = make(FastDPOTrainer, SFTConfig, fast=True)
    found = first.score_reference(file)
    assert found.shape == (24, 2) and (found < 0).all()
    again = make(FastDPOTrainer, SFTConfig, fast=True).score_reference(file)
    assert torch.equal(again, found)
    assert "reference: read from" in capsys.readouterr().out
    other = make(FastDPOTrainer, SFTConfig, fast=True)
    weight = next(w for n, w in other.model.named_parameters() if "lora_B" in n)
    weight.data += 0.1
    assert not torch.equal(other.score_reference(file), found)
    first.train()
    with pytest.raises(ValueError, match="no longer its own reference"):
        first.score_reference(file)


@pytest.mark.slow
def test_training_without_a_reference_is_refused(make):
    trainer = make(FastDPOTrainer, SFTConfig, fast=True)
    with pytest.raises(ValueError, match="score_reference"):
        trainer.train()
    with pytest.raises(ValueError, match="'dpo'; it can be sigmoid, ipo, orpo"):
        make(FastDPOTrainer, SFTConfig, loss="dpo")


@pytest.mark.slow
def test_orpo_needs_no_reference_and_lowers_its_loss(make):
    trainer = make(FastDPOTrainer, SFTConfig, fast=True, loss="orpo")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_tokenize_refuses_rows_of_another_kind(tokenizer):
    with pytest.raises(ValueError, match="Line 3 is a completion row"):
        tokenize([data.to_row({"text": "Lima is a town in Peru."}, 3)], tokenizer)


LENGTHS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40
)


def pairs_of(lengths: list[tuple[int, int]]) -> list[dict]:
    """Return pairs of tokenized answers with these numbers of tokens."""
    names = ("chosen", "rejected")
    return [
        {name: {"input_ids": [0] * n} for name, n in zip(names, pair, strict=True)}
        for pair in lengths
    ]


@given(LENGTHS, st.integers(120, 2000), st.integers(1, 20), st.booleans())
def test_batches_fit_the_plan_whichever_pairs_are_drawn(lengths, tokens, update, fast):
    plan = memory.Plan(tokens, 1, 0, False, fast, memory.Memory())
    pairs = pairs_of(lengths)
    size, times = batches(pairs, plan, update)
    sizes = sorted(map(sum, lengths))[-size:]
    if not fast:  # each sequence is padded to the longest
        sizes = [2 * max(map(max, lengths))] * min(size, len(lengths))
    assert sum(sizes) <= tokens
    assert size * (times - 1) < update <= size * times < update + times


def test_batches_of_a_pair_that_is_longer_than_the_plan():
    plan = memory.Plan(50, 1, 0, False, True, memory.Memory())
    with pytest.raises(ValueError, match="has 60 tokens, but the plan is for 50"):
        batches(pairs_of([(30, 30)]), plan, 16)


def test_a_pair_of_7b_needs_no_more_memory_than_two_rows_on_a_t4():
    """The longest pair is planned as one packed row, so the peak is that of SFT."""
    lengths, rank, budget = [512, 400, 180, 180, 150, 150] * 9, 16, 14.26 * memory.GIB
    pairs = pairs_of([(n, n) for n in lengths])
    of_pairs = {"longest": 2 * 512, "update": 16 * 2 * sum(lengths) // len(lengths)}
    of_rows = {"longest": 512, "update": of_pairs["update"]}
    dpo, sft = (
        memory.plan(LlamaConfig(), "qlora", rank, budget=budget, **sizes)
        for sizes in (of_pairs, of_rows)
    )
    size, times = batches(pairs, dpo, 16)
    assert size * times >= 16 and dpo.cost.total <= budget and dpo.recompute == 0
    drawn = sum(sorted((2 * n for n in lengths), reverse=True)[:size])
    found = memory.estimate(
        LlamaConfig(), "qlora", rank, drawn, fast=True, optimizer="adamw_8bit"
    )
    assert found.peak <= sft.cost.peak + 0.5 * memory.GIB


@pytest.mark.slow
def test_resumed_dpo_ends_as_an_uninterrupted_one(make, tmp_path, capsys):
    """A resumed run reads the reference, which its adapter no longer is."""
    file = tmp_path / "reference.safetensors"

    def begin(name: str):
        given = {"max_steps": 6, "output_dir": str(tmp_path / name)}
        trainer = make(FastDPOTrainer, SFTConfig, fast=True, given=given)
        trainer.score_reference(file)
        return trainer

    whole = begin("whole")
    whole.train()
    expected = weights_of(whole)

    cut = begin("cut")
    cut.add_callback(StopAt(3))
    cut.train()
    assert cut.state.global_step == 3

    capsys.readouterr()
    resumed = begin("cut")
    assert "reference: read from reference.safetensors" in capsys.readouterr().out
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for name, weight in weights_of(resumed).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
    # The comparison is meaningful: the second half of the run moved the adapter.
    halfway = weights_of(cut)
    assert max((halfway[n] - expected[n]).abs().max() for n in expected) > 1e-4


def weights_of(trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


@pytest.mark.slow
def test_reference_does_not_depend_on_the_a_of_a_new_adapter(make, tmp_path, capsys):
    """Another GPU draws another A, and B = 0 hides it."""
    file = tmp_path / "reference.safetensors"
    make(FastDPOTrainer, SFTConfig, fast=True).score_reference(file)
    other = make(FastDPOTrainer, SFTConfig, fast=True, seed=1)
    other.score_reference(file)
    assert "reference: read from" in capsys.readouterr().out
    for name, weight in other.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1
    key = other.reference_key()
    next(w for n, w in other.model.named_parameters() if "lora_A" in n).data += 0.1
    assert other.reference_key() != key


@pytest.mark.slow
def test_frozen_adapter_is_refused(make):
    trainer = make(FastDPOTrainer, SFTConfig, fast=True)
    trainer.score_reference()
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="has 0 of 0 trainable parameters"):
        trainer.train()


@pytest.mark.slow
def test_training_that_changes_nothing_is_an_error(make):
    trainer = make(FastDPOTrainer, SFTConfig, fast=True, given={"learning_rate": 0.0})
    trainer.score_reference()
    with pytest.raises(RuntimeError, match="No trainable weight has changed in 3"):
        trainer.train()


@pytest.mark.slow
def test_a_given_adapter_is_not_rounded(make, tokenizer, rows, tmp_path):
    """TRL rounds it to bfloat16, so the reference would be another model."""
    model = make(FastDPOTrainer, SFTConfig, fast=True).model
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = FastDPOTrainer(
        model=model,
        args=SFTConfig(
            **UPDATES | training.precision() | {"output_dir": str(tmp_path)}
        ),
        train_dataset=Dataset.from_list(tokenize(rows, tokenizer)),
        processing_class=tokenizer,
    )
    training.float32_adapters(trainer)
    found = weights_of(trainer)
    assert len(found) == 84
    for name, weight in found.items():
        assert torch.equal(weight, before[name])


@pytest.mark.slow
def test_shared_prompts_change_neither_scores_nor_gradients(make, tokenizer):
    """Pairs of several lengths, so that the documents are in several groups."""
    rows = [
        {
            "prompt": f"Why {word * n}?",
            "chosen": "Yes. " * (1 + n % 5),
            "rejected": "No",
        }
        for n, word in enumerate(["so ", "is it cold ", "do they go there by train "])
    ] + [{"prompt": "Where? " * 30, "chosen": "Here, " * 40, "rejected": "There."}]
    pairs = tokenize([data.to_row(row, 1) for row in rows], tokenizer)
    trainer = make(FastDPOTrainer, SFTConfig, fast=True)
    model = trainer.model.train()
    batch = Collator()(pairs)
    prompts = [pair["chosen"]["assistant_masks"].index(1) for pair in pairs]
    copies = [0] * 4 + [n - 1 for n in prompts]
    assert batch["shared"].tolist() == [[i % 4, n] for i, n in enumerate(copies)]
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.05)
    found = []
    for shared in (batch["shared"], torch.zeros(8, 2, dtype=torch.long)):
        model.zero_grad()
        policy = scores(model, batch | {"shared": shared}).log_probs
        (policy * torch.tensor([1.0, -0.7])).sum().backward()
        named = model.named_parameters()
        found.append((policy, {n: p.grad for n, p in named if p.requires_grad}))
    (policy, grads), (expected, wanted) = found
    torch.testing.assert_close(policy, expected, rtol=1e-5, atol=1e-4)
    for name, gradient in wanted.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(grads[name], gradient, rtol=1e-3, atol=1e-4 * scale)


def test_collator_shares_no_token_with_a_loss_after_it():
    def sequence(ids: list[int], trained: list[int]) -> dict:
        return {"input_ids": ids, "assistant_masks": trained}

    shared = []
    for one, other in (
        (([1, 5, 6, 7], [0, 0, 0, 1]), ([1, 5, 6, 8], [0, 0, 0, 1])),
        (([1, 5, 6, 7], [0, 0, 0, 1]), ([1, 4, 6, 8], [0, 0, 0, 1])),
        (([1, 5, 6, 7], [0, 1, 0, 1]), ([1, 5, 6, 8], [0, 1, 0, 1])),
        (([5, 7], [0, 1]), ([5, 7, 8], [0, 1, 1])),
        (([7], [1]), ([8], [1])),
    ):
        pair = {"index": 0, "chosen": sequence(*one), "rejected": sequence(*other)}
        batch = Collator()([pair])
        shared.append(batch["shared"].tolist() if "shared" in batch else None)
    assert shared == [[[0, 0], [0, 2]], None, None, None, None]


@pytest.mark.slow
def test_step_that_runs_out_of_memory_begins_again(make, capsys):
    expected, trainer = (make(FastDPOTrainer, SFTConfig, fast=True) for _ in range(2))
    training.use_fast_path(expected, dataclasses.replace(PLAN, recompute=6))
    for one in (expected, trainer):
        one.score_reference()
    planted = InBackward(trainer, 2)
    expected.train()
    trainer.train()
    assert "The step begins again" in capsys.readouterr().out
    assert planted.partial > 10 and planted.passes == 8
    assert history(trainer) == history(expected)
