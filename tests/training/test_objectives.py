"""The formulas of GRPO and PPO against TRL's, and against a bandit that is solved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers.training import ON_CPU
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.ppo import ppo_trainer

from colab_utils import models
from colab_utils.training import objectives
from colab_utils.training.log_probs import pad, token_log_probs


def test_group_advantages_compare_the_answers_of_a_group():
    found = objectives.group_advantages(torch.tensor([1.0, 0, 0, 0, 5, 5, 5, 5]), 4)
    assert found.tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], abs=1e-3
    )


def test_gae_adds_up_the_td_errors_of_an_answer():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    values = torch.tensor([[0.2, 0.5, 0.4, 0.0]])  # the last token is padding
    errors = [0.5 - 0.2, 0.4 - 0.5, 1.0 - 0.4]
    expected = [
        sum(0.9**k * error for k, error in enumerate(errors[t:])) for t in range(3)
    ]
    found = objectives.gae(rewards, values, 0.9)
    assert found[0].tolist() == pytest.approx([*expected, 0])


def test_gae_with_decay_1_is_the_reward_to_come_minus_the_value():
    set_seed(0)
    rewards, values = torch.randn(2, 3, 7)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(objectives.gae(rewards, values, 1.0), to_come - values)


def test_whiten_is_trls():
    set_seed(0)
    values, mask = torch.randn(3, 5), torch.rand(3, 5) > 0.3
    expected = ppo_trainer.masked_whiten(values, mask)
    assert torch.allclose(objectives.whiten(values, mask)[mask], expected[mask])
    assert not objectives.whiten(values, mask)[~mask].any()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clipped_loss_has_no_gradient_once_a_step_went_far(advantage):
    log_probs = torch.tensor([[0.5, 0.1, -0.5]], requires_grad=True)
    loss = objectives.clipped_loss(
        log_probs, torch.zeros(1, 3), torch.full((1, 3), advantage), 0.2
    )
    loss.sum().backward()
    ratio = log_probs.detach().exp()
    far = ratio > 1.2 if advantage > 0 else ratio < 0.8
    assert torch.allclose(log_probs.grad, torch.where(far, 0, -advantage * ratio))


def test_kl_is_that_of_the_distributions_on_average():
    set_seed(0)
    logits, reference = torch.randn(2, 1, 5)
    p, q = logits.log_softmax(-1), reference.log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    each = objectives.kl(p, q)
    assert (each >= 0).all()
    assert (p.exp() * each).sum() == pytest.approx(exact.item(), rel=1e-5)


@pytest.fixture(scope="module")
def batch():
    """Six answers to prompts of several lengths: ids, masks, old, reference."""
    set_seed(1)
    rows = [torch.randint(3, 1000, (n,)).tolist() for n in (9, 12, 7, 15, 11, 8)]
    masks = [[0] * 4 + [1] * (len(row) - 4) for row in rows]
    found = pad(rows, masks)
    shape = found["labels"][:, 1:].shape
    noise = 0.3 * torch.randn(2, *shape)
    return found, noise, torch.randn(len(rows))


@pytest.mark.slow
def test_grpo_loss_and_gradient_are_trls(batch, tokenizer, tmp_path):
    """On a fixed batch, with ratios inside and outside of the clipped range."""
    rows, noise, rewards = batch
    model = models.load_model("demo").float()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            **ON_CPU | {"output_dir": str(tmp_path), "loss_type": "dapo"},
            beta=0.04,
            num_generations=3,
            per_device_train_batch_size=3,
            fp16=False,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "What?"}]),
        processing_class=tokenizer,
    )
    advantages = objectives.group_advantages(rewards, 3)
    with torch.no_grad():
        before = token_log_probs(model, rows)
    old, reference = before + noise[0], before + noise[1]
    mask = rows["labels"][:, 1:] != -100
    begin = 4  # tokens of a prompt
    inputs = {
        "prompt_ids": rows["input_ids"][:, :begin],
        "prompt_mask": rows["attention_mask"][:, :begin],
        "completion_ids": rows["input_ids"][:, begin:],
        "completion_mask": rows["attention_mask"][:, begin:],
        "advantages": advantages,
        "old_per_token_logps": old[:, begin - 1 :],
        "ref_per_token_logps": reference[:, begin - 1 :],
        "num_items_in_batch": mask.sum(),
    }
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    log_probs = token_log_probs(model, rows)
    losses = objectives.clipped_loss(log_probs, old, advantages[:, None], 0.2)
    losses = losses + 0.04 * objectives.kl(log_probs, reference)
    loss = losses[mask].sum() / mask.sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ratio = (log_probs.detach() - old).exp()[mask]
    assert 0.1 < ((ratio - 1).abs() > 0.2).float().mean() < 0.9
    for name, weight in model.named_parameters():
        error = (weight.grad - gradients[name]).norm() / gradients[name].norm()
        assert error < 1e-5, name


def bandit(steps: int, beta: float, learn) -> torch.Tensor:
    """Return the probabilities of two arms after training on 256 pulls a step."""
    set_seed(0)
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    reference = torch.tensor([0.8, 0.2]).log()
    for _ in range(steps):
        with torch.no_grad():
            arms = torch.multinomial(logits.softmax(-1), 256, replacement=True)
            old = logits.log_softmax(-1)[arms]
        rewards = (arms == 1).float()  # the second arm is better by 1
        for _ in range(2):
            log_probs = logits.log_softmax(-1)[arms]
            loss = learn(log_probs, old, reference[arms], rewards, beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return logits.detach().softmax(-1)


def ppo(log_probs, old, reference, rewards, beta):
    """The update of PPO for answers of one token, with the value 0.5."""
    total = (rewards + beta * (reference - old))[:, None]
    values = torch.full_like(total, 0.5)
    advantages = objectives.gae(total, values, 0.95)
    losses = objectives.clipped_loss(
        log_probs[:, None], old[:, None], advantages - advantages.mean(), 0.2
    )
    return losses.mean()


def grpo(log_probs, old, reference, rewards, beta):
    """The update of GRPO, with all pulls as a group, not divided by the deviation.

    The division changes the weight of the reward against the KL divergence.
    """
    advantages = rewards - rewards.mean()
    losses = objectives.clipped_loss(log_probs, old, advantages, 0.2)
    return (losses + beta * objectives.kl(log_probs, reference)).mean()


@pytest.mark.parametrize("learn", [ppo, grpo])
def test_bandit_takes_the_better_arm_without_a_penalty(learn):
    assert bandit(200, 0.0, learn)[1] > 0.98


def test_bandit_reaches_the_optimum_of_reward_minus_kl_with_ppo():
    """It is the reference times exp(reward / beta), normed (Ziebart 2010)."""
    weights = torch.tensor([0.8, 0.2]) * (torch.tensor([0.0, 1.0]) / 0.5).exp()
    best = (weights / weights.sum())[1].item()  # 0.65
    assert bandit(400, 0.5, ppo)[1].item() == pytest.approx(best, abs=0.05)


def test_trls_ppo_has_the_same_objective():
    """Both losses of TRL's loop, written with its own functions, on fixed numbers."""
    set_seed(2)
    rows, tokens = 4, 6
    old, reference = -torch.rand(2, rows, tokens)
    values, scores = torch.randn(rows, tokens), torch.randn(rows)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    new = (old + 0.3 * torch.randn(rows, tokens)).requires_grad_()
    predicted = (values + 0.4 * torch.randn(rows, tokens)).requires_grad_()
    expected = SimpleNamespace()
    rewards = -0.05 * (old - reference)
    rewards[:, -1] += scores
    last, found = 0, []
    for t in reversed(range(tokens)):
        following = values[:, t + 1] if t < tokens - 1 else 0.0
        last = rewards[:, t] + following - values[:, t] + 0.95 * last
        found.append(last)
    advantages = torch.stack(found[::-1], 1)
    returns = advantages + values
    expected.advantages = ppo_trainer.masked_whiten(advantages, mask)
    ratio = (new - old).exp()
    policy = torch.max(
        -expected.advantages * ratio, -expected.advantages * ratio.clamp(0.8, 1.2)
    )
    clipped = torch.clamp(predicted, values - 0.2, values + 0.2)
    value = torch.max((predicted - returns) ** 2, (clipped - returns) ** 2)
    expected.loss = policy.mean() + 0.1 * 0.5 * value.mean()
    expected.loss.backward()
    gradients = new.grad.clone(), predicted.grad.clone()
    new.grad = predicted.grad = None

    ours = objectives.gae(rewards, values, 0.95)
    policy = objectives.clipped_loss(new, old, objectives.whiten(ours, mask), 0.2)
    value = objectives.value_loss(predicted, values, ours + values, 0.2)
    loss = policy.mean() + 0.1 * value.mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert torch.allclose(new.grad, gradients[0], atol=1e-6)
    assert torch.allclose(predicted.grad, gradients[1], atol=1e-6)
