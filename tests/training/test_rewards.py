"""GRPO and PPO: they learn, save only the policy, resume exactly, and refuse."""

from __future__ import annotations

import pytest
import torch
from helpers.training import ON_CPU, StopAt
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import set_seed
from trl import SFTConfig

from colab_utils import data, demo, memory, models, training
from colab_utils.fast import patch
from colab_utils.fast.documents import share
from colab_utils.training.rewards import VALUE_FILE, FastGRPOTrainer, FastPPOTrainer

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())
KINDS = [FastGRPOTrainer, FastPPOTrainer]


def brief(rows, answers):
    """Reward answers that have few characters: easy to learn in a few steps."""
    return [-len(answer) / 10 for answer in answers]


@pytest.fixture(scope="module")
def rows() -> list[data.Row]:
    return [data.to_row(raw, 1) for raw in demo.questions(wordings=1)[:32]]


@pytest.fixture(scope="module")
def make(rows, tokenizer, tmp_path_factory):
    """Return a function that builds a trainer on the 4-bit demo model."""
    folder = str(tmp_path_factory.mktemp("rl"))

    def trainer(kind, fast=True, settings=None, **given):
        set_seed(0)
        lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        base = models.load_model("demo", models.quantization_config())
        config = ON_CPU | {"output_dir": folder, "per_device_train_batch_size": 4}
        config |= {"learning_rate": 3e-3, "lr_scheduler_type": "constant"}
        config |= {"warmup_steps": 0, "optim": "adamw_torch", "max_steps": 3}
        usual = {"rows": rows, "reward": brief, "answer_tokens": 8, "group": 4}
        given = usual | {"model": get_peft_model(base, lora)} | given
        found = kind(
            args=SFTConfig(**config | training.precision() | (settings or {})),
            processing_class=tokenizer,
            **given,
        )
        training.float32_adapters(found)
        if fast:
            training.use_fast_path(found, PLAN)
        return found

    return trainer


def weights(trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if ".default." in name}


def logged(trainer, name) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_raises_the_reward_and_changes_only_the_policy(make, kind):
    updates = {"updates": 2} if kind is FastPPOTrainer else {}
    trainer = make(kind, settings={"max_steps": 10}, beta=0.0, **updates)
    first, base = weights(trainer), trainer.model.get_base_model()
    norms = [p.clone() for n, p in base.named_parameters() if "norm" in n]
    trainer.train()
    assert all(not torch.equal(w, first[n]) for n, w in weights(trainer).items())
    assert all(w.isfinite().all() for w in weights(trainer).values())
    after = [p for n, p in base.named_parameters() if "norm" in n]
    assert all(map(torch.equal, norms, after))
    reward = logged(trainer, "reward")
    assert sum(reward[-2:]) / 2 > sum(reward[:2]) / 2 + 0.2
    assert list(trainer.model.peft_config) == ["default"]
    assert not hasattr(trainer.model, "score_head")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_is_in_the_optimizer(make, kind):
    trainer = make(kind, settings={"max_steps": 1})
    trainer.train()
    found = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    policy = [p for n, p in trainer.model.named_parameters() if ".default." in n]
    assert {id(p) for p in policy} <= found
    if kind is FastPPOTrainer:
        assert id(trainer.head.weight) in found
        assert len(found) == 2 * len(policy) + 1
        assert trainer.head.weight.any()  # it was trained


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fast_and_reference_path_learn_the_same(make, kind, monkeypatch):
    """The first step's answers are the same ones, so its numbers are equal.

    The fast path computes the prompt of four answers once.
    """
    found, shares = [], []
    monkeypatch.setattr(patch, "share", lambda *args: shares.append(1) or share(*args))
    for fast in (True, False):
        trainer = make(kind, fast, {"max_steps": 1}, updates=2)
        trainer.train()
        found.append((trainer, len(shares)))
    (_, once), (_, then) = found
    assert once == then > 0
    for name in ("reward", "loss", "grad_norm"):
        one, other = (logged(trainer, name) for trainer, _ in found)
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_equals_the_whole_one(make, kind, tmp_path):
    saving = {"save_strategy": "no", "max_steps": 3}
    whole = make(
        kind, settings=saving | {"output_dir": str(tmp_path / "whole")}, updates=2
    )
    whole.train()
    cut = saving | {"output_dir": str(tmp_path / "cut")}
    short = make(kind, settings=cut, updates=2)
    short.add_callback(StopAt(1))
    short.train()
    checkpoint = tmp_path / "cut/checkpoint-1"
    resumed = make(kind, settings=cut, updates=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logged(resumed, "reward")[-2:] == logged(whole, "reward")[-2:]
    expected = weights(whole)
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, expected[name]), name
    if kind is FastPPOTrainer:
        assert torch.equal(resumed.head.weight, whole.head.weight)


@pytest.mark.slow
def test_checkpoint_has_the_policy_alone_and_ppo_its_value_beside(make, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = make(FastPPOTrainer, settings=saving | {"output_dir": str(tmp_path)})
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert names and not [n for n in names if "reference" in n or "value" in n]
    assert (folder / VALUE_FILE).is_file()
    trainer.save_model(str(tmp_path / "result"))
    assert not (tmp_path / "result" / VALUE_FILE).exists()


@pytest.mark.slow
def test_policy_begins_with_the_exact_weights_of_its_adapter(make):
    """TRL rounds the adapter of a quantized model to bfloat16."""
    set_seed(3)
    lora = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    base = models.load_model("demo", models.quantization_config())
    model = get_peft_model(base, lora)
    first = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n}
    make(FastGRPOTrainer, model=model)
    for name, weight in first.items():
        assert torch.equal(model.get_parameter(name), weight), name


@pytest.mark.slow
def test_reference_is_a_copy_of_the_adapter_that_training_begins_with(make):
    set_seed(3)
    lora = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    base = models.load_model("demo", models.quantization_config())
    trainer = make(
        FastGRPOTrainer, settings={"max_steps": 2}, model=get_peft_model(base, lora)
    )
    trainer.train()
    first, second = logged(trainer, "kl")
    assert first == pytest.approx(0, abs=1e-4) and second > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward", [lambda rows, answers: [1.0], lambda rows, answers: [float("nan")] * 16]
)
def test_reward_function_without_a_number_for_each_answer_is_refused(make, reward):
    with pytest.raises(ValueError, match="it must return a number for each"):
        make(FastGRPOTrainer, reward=reward).train()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_that_runs_out_of_memory_begins_again(make, kind, capsys):
    """The second update of the second step fails in its second backward pass."""
    given = {"tokens": 128, "updates": 2}
    expected, trainer = make(kind, **given), make(kind, **given)
    set_seed(1)  # the sampling of answers
    expected.train()
    gradient, calls = trainer.gradient, []

    def fails(model, rollout, first=False):
        calls.append(first)
        if len(calls) == 4:
            backward, passes = trainer.accelerator.backward, []

            def second(loss):
                passes.append(loss)
                if len(passes) == 2:
                    trainer.accelerator.backward = backward
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                backward(loss)

            trainer.accelerator.backward = second
        return gradient(model, rollout, first=first)

    trainer.gradient = fails
    set_seed(1)
    trainer.train()
    out = capsys.readouterr().out
    assert "step 2: " in out and "again in parts of 64 tokens, with gradient ch" in out
    assert trainer.tokens == 64 and calls[3:5] == [False, False] and len(calls) == 7
    for name in ("loss", "reward", "kl", "answers/tokens"):
        assert logged(trainer, name) == pytest.approx(logged(expected, name), rel=1e-3)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(trainer)[name], weight, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_writing_that_runs_out_of_memory_begins_again_with_fewer(make, capsys):
    trainer = make(FastGRPOTrainer, writers=8)
    write, calls = trainer.write, []

    def fails(indices):
        calls.append(trainer.writers)
        found = write(indices)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found

    trainer.write = fails
    trainer.train()
    assert calls == [8, 8, 4, 4] and trainer.state.global_step == 3
    assert "again with 4 answers written at once, and" in capsys.readouterr().out
    assert len(logged(trainer, "answers/cut off")) == 3


@pytest.mark.slow
def test_rollouts_with_accumulation_stop_when_the_memory_runs_out(make):
    trainer = make(FastGRPOTrainer, settings={"gradient_accumulation_steps": 2})

    def fails(indices):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.write = fails
    with pytest.raises(MemoryError, match="RAM ran out in step 1: "):
        trainer.train()


def test_group_of_one_answer_is_refused(make):
    with pytest.raises(ValueError, match="group = 1, but GRPO compares answers"):
        make(FastGRPOTrainer, group=1)
