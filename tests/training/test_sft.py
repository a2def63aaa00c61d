from __future__ import annotations

import weakref

import pytest
import torch
from helpers.training import StopAt
from trl import SFTConfig, SFTTrainer

from colab_utils import memory, training
from colab_utils.training.sft import FastSFTTrainer

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


def log(trainer) -> list[dict]:
    """Return a trainer's log without the entries that depend on the clock."""
    return [
        {name: value for name, value in entry.items() if name not in TIMES}
        for entry in trainer.state.log_history
    ]


@pytest.mark.slow
def test_fast_sft_trainer_on_the_reference_path_logs_what_trl_does(make_trainer):
    ours, trls = make_trainer("lora"), make_trainer("lora", kind=SFTTrainer)
    for trainer in (ours, trls):
        training.float32_adapters(trainer)
    training.use_fast_path(ours, PLAN)
    training.use_reference_path(ours)
    training.use_reference_path(trls)
    ours.train()
    trls.train()
    assert type(trls) is SFTTrainer
    assert log(ours) == log(trls)
    assert {"entropy", "num_tokens", "mean_token_accuracy"} <= log(trls)[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_compute_loss_on_the_fast_path_logs_all_except_entropy(make_trainer, packing):
    """Tokens are counted exactly as TRL counts them, padding excluded."""
    settings = {"packing": packing, "max_length": 128, "logging_steps": 2}
    reference, fast = (make_trainer("lora", **settings) for _ in range(2))
    for trainer in (reference, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    reference.train()
    fast.train()
    expected, found = log(reference)[0], log(fast)[0]
    assert expected.keys() - found.keys() == {"entropy"}
    assert found["num_tokens"] == expected["num_tokens"]
    batch = dict(next(iter(fast.get_train_dataloader())))
    loss, output = fast.compute_loss(fast.model.train(), batch, return_outputs=True)
    assert output.logits is None and torch.equal(loss, output.loss)


@pytest.mark.slow
def test_compute_loss_of_another_loss_is_trls(make_trainer):
    """The fast path knows one loss; TRL's DFT loss is computed from logits."""
    reference, fast = (make_trainer("lora", loss_type="dft") for _ in range(2))
    for trainer in (reference, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    reference.train()
    fast.train()
    assert log(fast) == log(reference)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_use_fast_path_of_trls_trainer(make_trainer, capsys, fast):
    """It can only use the reference path, with gradient checkpointing."""
    trainer = make_trainer("lora", kind=SFTTrainer)
    training.float32_adapters(trainer)
    plan = memory.Plan(256, 1, 2, False, fast, memory.Memory())
    if fast:
        with pytest.raises(TypeError, match=r"with training\.sft\.FastSFTTrainer"):
            training.use_fast_path(trainer, plan)
    else:
        training.use_fast_path(trainer, plan)
        assert "checkpointing for 2 of 6 layers" in capsys.readouterr().out
    trainer.train()
    assert "entropy" in trainer.state.log_history[0]


def rates(trainer) -> list[float]:
    """Return the learning rate of each step of a trained trainer."""
    return [e["learning_rate"] for e in trainer.state.log_history if "loss" in e]


@pytest.fixture
def no_model(monkeypatch):
    """Give a trainer's schedule without a model: its rates for `steps` steps."""

    def schedule(kind: type[SFTTrainer], steps: int, tmp_path, **settings):
        trainer = object.__new__(kind)
        trainer.args = SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings
        )
        weight = torch.nn.Parameter(torch.zeros(1))
        trainer.optimizer = torch.optim.SGD([weight], lr=settings["learning_rate"])
        trainer.lr_scheduler = None
        scheduler = trainer.create_scheduler(steps)
        found = []
        for _ in range(steps):
            found.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.optimizer.step()
            scheduler.step()
        return found

    return schedule


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0.05, 2])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_create_scheduler_is_trls_without_its_first_step(
    no_model, tmp_path, kind, warmup, steps
):
    settings = {"learning_rate": 0.5, "lr_scheduler_type": kind, "warmup_steps": warmup}
    found = no_model(FastSFTTrainer, steps, tmp_path, **settings)
    expected = no_model(SFTTrainer, steps + 1, tmp_path, **settings)
    assert found == expected[1:]
    assert expected[0] == 0 < min(found)


def test_create_scheduler_without_warmup_is_trls(no_model, tmp_path):
    settings = {"learning_rate": 0.5, "lr_scheduler_type": "linear", "warmup_steps": 0}
    found, expected = (
        no_model(kind, 5, tmp_path, **settings) for kind in (FastSFTTrainer, SFTTrainer)
    )
    assert found == expected and found[0] == 0.5


@pytest.mark.slow
def test_train_in_8_bits_leaves_no_model_behind(make_trainer):
    trainer = make_trainer("qlora", optim="adamw_8bit")
    trainer.train()
    modules = [weakref.ref(module) for module in trainer.model.modules()]
    del trainer
    memory.release()
    assert [module() for module in modules if module()] == []


@pytest.mark.slow
def test_train_one_step_trains(make_trainer):
    trainer = make_trainer("lora", max_steps=1, warmup_steps=0.05)
    training.float32_adapters(trainer)
    trainer.train()
    assert rates(trainer) == [1e-3]
    named = trainer.model.named_parameters()
    moved = [p.abs().max().item() for n, p in named if "lora_B" in n]
    assert min(moved) > 5e-4  # B began at zero; Adam's first step is the learning rate


@pytest.mark.slow
def test_training_step_of_a_small_update(make_trainer, demo_rows):
    """An epoch of 5 rows in updates of 4: the last row counts as one row, not as four.

    The gradient is a quarter of TRL's, the loss is the same; the whole update's
    gradient is TRL's.
    """
    rows = [demo_rows[0]] * 5  # of equal lengths
    steps = {}
    for kind in (FastSFTTrainer, SFTTrainer):
        trainer = make_trainer(
            "lora",
            rows=rows,
            kind=kind,
            gradient_accumulation_steps=4,
            per_device_train_batch_size=1,
            max_grad_norm=0,
        )
        training.float32_adapters(trainer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 4
        batches = list(trainer.get_train_dataloader())
        for name, some in (("whole", batches[:4]), ("small", batches[4:])):
            trainer.model.zero_grad()
            count = sum((one["labels"] != -100).sum() for one in some)
            loss = sum(
                trainer.training_step(trainer.model, dict(one), count) for one in some
            )
            named = trainer.model.named_parameters()
            gradient = {n: p.grad.clone() for n, p in named if "lora_B" in n}
            steps[kind, name] = loss, gradient
    for name, share in (("whole", 1.0), ("small", 0.25)):
        loss, gradient = steps[FastSFTTrainer, name]
        expected_loss, expected = steps[SFTTrainer, name]
        torch.testing.assert_close(loss, expected_loss)
        for weight, found in gradient.items():
            torch.testing.assert_close(found, share * expected[weight])


def recorded(trainer) -> list[int]:
    """Return a list to which each training step appends the hash of its tokens."""
    seen, step = [], trainer.training_step

    def record(model, inputs, *rest):
        seen.append(hash(tuple(inputs["input_ids"].flatten().tolist())))
        return step(model, inputs, *rest)

    trainer.training_step = record
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 8])
def test_resume_with_more_epochs(make_trainer, tmp_path, stop):
    """The steps, the order of the rows and the learning rates are the longer run's.

    An epoch has 8 steps. Step 8 ended the shorter run, where its rate fell to zero.
    """
    usual = {"max_steps": -1, "per_device_train_batch_size": 8, "warmup_steps": 0.05}

    def begin(epochs: int, name: str):
        trainer = make_trainer(
            "lora", num_train_epochs=epochs, output_dir=str(tmp_path / name), **usual
        )
        training.float32_adapters(trainer)
        return trainer, recorded(trainer)

    whole, expected = begin(2, "whole")
    whole.train()
    short, first = begin(1, "cut")
    inputs = {"data": "abc", "epochs": 1}
    assert training.resume_point(tmp_path / "cut", inputs) is None
    short.add_callback(StopAt(stop))
    short.train()
    longer, second = begin(2, "cut")
    point = training.resume_point(tmp_path / "cut", inputs | {"epochs": 2})
    longer.train(resume_from_checkpoint=point)
    assert longer.state.global_step == whole.state.global_step == 16
    assert len(first) == stop and first + second == expected
    assert rates(longer)[stop:] == rates(whole)[stop:]
    assert longer.state.epoch == 2


@pytest.mark.slow
def test_resume_with_another_plan(make_trainer, tmp_path):
    """An update of the same size, in 2 micro-batches instead of 1, packed anew."""

    def begin(tokens: int, times: int):
        trainer = make_trainer(
            "lora",
            max_steps=-1,
            num_train_epochs=2,
            packing=True,
            max_length=tokens,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=times,
            output_dir=str(tmp_path / "checkpoints"),
        )
        training.float32_adapters(trainer)
        plan = {"data": "abc", "tokens": tokens, "accumulation": times, "epochs": 2}
        return trainer, training.resume_point(tmp_path / "checkpoints", plan)

    first, point = begin(256, 1)
    assert point is None
    first.add_callback(StopAt(7))
    first.train()
    assert first.state.global_step == 7
    second, point = begin(128, 2)
    assert point is not None
    second.train(resume_from_checkpoint=point)
    assert second.state.epoch == 2
    assert abs(second.state.max_steps - first.state.max_steps) <= 2
    assert [e["step"] for e in second.state.log_history if "loss" in e] == list(
        range(1, second.state.max_steps + 1)
    )


@pytest.mark.slow
def test_resume_with_trained_rows(make_trainer, tokenizer, tmp_path):
    """A checkpoint has the trained rows; the resumed run ends as the whole one."""
    read = tokenizer("<s>What", add_special_tokens=False)["input_ids"][:2]

    def begin(name: str):
        trainer = make_trainer(
            "qlora",
            max_steps=4,
            output_dir=str(tmp_path / name),
            trained_rows=[*read, 1000],
        )
        training.float32_adapters(trainer)
        training.use_fast_path(trainer, PLAN)
        return trainer

    whole = begin("whole")
    first = rows_of(whole)
    whole.train()
    short = begin("cut")
    short.add_callback(StopAt(2))
    short.train()
    resumed = begin("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))
    assert whole.fast_path and resumed.state.global_step == 4
    assert (rows_of(whole) != first).any(1).tolist() == [True, True, False]
    for name, weight in whole.model.named_parameters():
        if weight.requires_grad:
            assert torch.equal(resumed.model.get_parameter(name), weight), name


def rows_of(trainer) -> torch.Tensor:
    """Return a copy of the trained rows of the embeddings."""
    named = trainer.model.named_parameters()
    (rows,) = (p for name, p in named if "trainable_tokens_delta" in name)
    return rows.detach().clone()
