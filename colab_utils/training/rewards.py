"""Reinforcement learning of a Llama with adapters: GRPO and PPO on one quantized base.

A step has three parts. The policy, which is the adapter "default", writes answers to
some prompts. A function of the reader's scores them. The update makes the answers more
probable that are better than expected. GRPO expects the mean of the other answers to
the same prompt; PPO expects what a second adapter with a head, the value, predicts. A
third adapter, a copy of the policy before the first step, is the reference. Sources:
Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; Ouyang et al. 2022,
"Training language models to follow instructions"; Shao et al. 2024, "DeepSeekMath".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from colab_utils import data, models
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.generation.answer_text import AnswerText
from colab_utils.generation.continuing import new_tokens
from colab_utils.generation.prompts import as_messages, context_length, prompt_tokens
from colab_utils.generation.sampling import sampler
from colab_utils.training.log_probs import pad, token_log_probs
from colab_utils.training.sft import FastSFTTrainer
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    from peft import PeftModel

# Scores the answers to rows of a dataset.
Reward = Callable[[list[data.Row], list[str]], Sequence[float]]
Rollout = dict[str, torch.Tensor]
POLICY, REFERENCE = "default", "reference"


def group_advantages(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """Return how much better each answer (rows,) is than the others to its prompt.

    `group` answers to a prompt follow one another. Their rewards minus their mean are
    divided by their standard deviation. A group of equal rewards has the advantages 0.
    """
    groups = rewards.view(-1, group)
    found = groups - groups.mean(1, keepdim=True)
    return (found / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def clipped_loss(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return PPO's loss of each token (rows, tokens).

    It grows no further once a token is more probable, by the factor 1 + clip, than when
    it was written, or less probable by 1 - clip: one step shall not change much.
    """
    ratio = (log_probs - old).exp()
    limited = ratio.clamp(1 - clip, 1 + clip)
    return -torch.min(ratio * advantages, limited * advantages)


def kl(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return an estimate of the KL divergence from the reference at each token.

    It has no bias, and is never negative. Source: Schulman 2020, "Approximating KL
    divergence", the estimator k3.
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def gae(rewards: torch.Tensor, values: torch.Tensor, decay: float) -> torch.Tensor:
    """Return the advantages (rows, tokens) of tokens with these rewards and values.

    Both are 0 outside of the answers. A token's surprise is its reward, plus the next
    value, minus its own value; its advantage adds up the surprises from there on, each
    one `decay` times the one before. Source: Schulman et al. 2015, "Generalized
    Advantage Estimation", without discount.
    """
    found, following, last = [], torch.zeros_like(values[:, 0]), 0.0
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + following - values[:, t]
        last = surprise + decay * last
        found.append(last)
        following = values[:, t]
    return torch.stack(cast("list[torch.Tensor]", found[::-1]), 1)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and variance 1 where the mask is True, 0 elsewhere."""
    chosen = values[mask]
    return ((values - chosen.mean()) * (chosen.var() + 1e-8).rsqrt()).where(mask, 0)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return half the squared error of each value; one step moves it by `clip`."""
    limited = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (limited - returns) ** 2)


class FastGRPOTrainer(FastSFTTrainer):
    """Train a policy with GRPO on the answers that it writes itself.

    `rows` are the rows of a dataset; only their prompts are read. `reward` returns a
    number for each row and answer. A step takes `per_device_train_batch_size` prompts,
    samples `group` answers of up to `answer_tokens` tokens to each, and makes `updates`
    updates. A forward pass has about `tokens` tokens. `beta` weighs the KL divergence
    from the reference in the loss.
    """

    def __init__(
        self,
        *args: Any,
        rows: Sequence[data.Row],
        reward: Reward,
        answer_tokens: int,
        group: int = 8,
        beta: float = 0.04,
        clip: float = 0.2,
        updates: int = 1,
        tokens: int = 2048,
        writers: int = 64,
        **kwargs: Any,
    ) -> None:
        """Raise ValueError for a group of one answer."""
        if group < 2:
            raise ValueError(
                f"group = {group}, but GRPO compares answers to the same prompt: it "
                "must be 2 or more."
            )
        self.rows, self.reward = list(rows), reward
        self.answer_tokens, self.group, self.updates = answer_tokens, group, updates
        self.beta, self.clip = beta, clip
        self.tokens, self.writers = tokens, writers
        settings = kwargs.get("args")
        if isinstance(settings, SFTConfig):
            settings.remove_unused_columns = False
            settings.dataset_kwargs = {"skip_prepare_dataset": True}
        kwargs["train_dataset"] = Dataset.from_dict(
            {"index": range(len(self.rows)), "input_ids": [[0]] * len(self.rows)}
        )
        kwargs["data_collator"] = lambda some: {
            "index": torch.tensor([one["index"] for one in some])
        }
        super().__init__(*args, **kwargs)
        self.prompts = self._read_prompts()
        self.model_accepts_loss_kwargs = False

    def _read_prompts(self) -> list[list[int]]:
        """Return the token ids of the rows' prompts."""
        chats = Conversations(self.processing_class)
        context = context_length(model_of(self))
        return [
            prompt_tokens(
                chats, as_messages(row["messages"][:-1]), self.answer_tokens, context
            )
            for row in self.rows
        ]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a copy of the adapter is the reference meanwhile."""
        model = self.peft
        model.add_adapter(REFERENCE, model.peft_config[POLICY])
        _copy_adapter(model, POLICY, REFERENCE)
        model.set_adapter(POLICY)
        try:
            return super().train(*args, **kwargs)
        finally:
            model.delete_adapter(REFERENCE)
            model.set_adapter(POLICY)

    @property
    def peft(self) -> PeftModel:
        """The model with its adapters."""
        return cast("PeftModel", self.model)

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Compute with another adapter; afterward the policy is active again."""
        self.peft.set_adapter(adapter, inference_mode=adapter == REFERENCE)
        try:
            yield
        finally:
            self.peft.set_adapter(POLICY)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Write and score answers, and compute the gradient of the last update."""
        began = time.perf_counter()
        rollout = self.roll_out(inputs["index"].tolist())
        self._log("seconds/writing", time.perf_counter() - began)
        model.train()
        for number in range(self.updates):
            if number:  # the trainer itself makes the last update
                self._update(model)
            loss = self._backward(model, rollout, first=not number)
        return loss

    def _update(self, model: torch.nn.Module) -> None:
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(
                model.parameters(), self.args.max_grad_norm
            )
        self.optimizer.step()
        model.zero_grad()

    def roll_out(self, indices: Sequence[int]) -> Rollout:
        """Return scored answers to the prompts with these indices.

        A dict of tensors that begin with the rows: the batch of `pad`, `mask` (rows,
        tokens - 1) of the answers' tokens, their log-probabilities by the policy
        (`old`) and by the reference, and the `advantages`, all (rows, tokens - 1).
        """
        chosen = [i for i in indices for _ in range(self.group)]
        prompts, answers, texts = self.write(chosen)
        rewards = torch.tensor(
            self.reward([self.rows[i] for i in chosen], texts), dtype=torch.float32
        )
        if not rewards.isfinite().all() or rewards.shape != (len(chosen),):
            raise ValueError(
                f"The reward function returned {tuple(rewards.shape)} numbers for "
                f"{len(chosen)} answers, or NaN: it must return a number for each."
            )
        batch = pad(
            [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
            [
                [0] * len(prompt) + [1] * len(answer)
                for prompt, answer in zip(prompts, answers, strict=True)
            ],
        )
        device = model_of(self).device
        rollout = {name: tensor.to(device) for name, tensor in batch.items()}
        rollout["mask"] = rollout["labels"][:, 1:] != -100
        rollout["rewards"] = rewards.to(device)
        if self.updates > 1:  # else the policy is still the one that wrote
            rollout["old"] = self.log_probs(rollout)
        with self.using(REFERENCE):
            rollout["reference"] = self.log_probs(rollout)
        self._log_answers(rollout)
        return rollout | self.judge(rollout)

    def write(
        self, indices: Sequence[int]
    ) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """Sample an answer to each prompt; return prompts, answers and their texts."""
        model, tokenizer = model_of(self), self.processing_class
        ends = models.stop_tokens(model, tokenizer)
        prompts = [self.prompts[i] for i in indices]
        answers = new_tokens(
            model,
            prompts,
            ends,
            self.answer_tokens,
            self.writers,
            sampler(do_sample=True),
        )
        texts = []
        for ids in answers:
            text = AnswerText(tokenizer, ends, [], self.answer_tokens)
            for token in ids:
                text.add(token)
            texts.append(text.finish())
        ended = sum(ids[-1] in ends for ids in answers)
        self._log("answers/cut off", 1 - ended / len(answers))
        return prompts, answers, texts

    def judge(self, rollout: Rollout) -> Rollout:
        """Return the advantages of a rollout's tokens: those of their answer."""
        found = group_advantages(rollout["rewards"], self.group)
        return {"advantages": found[:, None].expand_as(rollout["mask"])}

    @torch.no_grad()
    def log_probs(self, rollout: Rollout) -> torch.Tensor:
        """Return the log-probabilities (rows, tokens - 1) by the active adapter."""
        model = model_of(self)
        model.train()
        found = torch.zeros(rollout["mask"].shape, device=rollout["mask"].device)
        for rows, part in self._parts(rollout):
            with self.accelerator.autocast():
                new = token_log_probs(model, part).float()
            found[rows, : new.shape[1]] = new
        return found

    def loss(self, log_probs: torch.Tensor, part: Rollout) -> torch.Tensor:
        """Return the losses of a part's tokens."""
        old = part.get("old", log_probs.detach())
        found = clipped_loss(log_probs, old, part["advantages"], self.clip)
        if self.beta:
            found = found + self.beta * kl(log_probs, part["reference"])
        return found

    def _backward(
        self, model: torch.nn.Module, rollout: Rollout, first: bool
    ) -> torch.Tensor:
        """Compute the gradient of the mean loss of a rollout's tokens; return it."""
        mask = rollout["mask"]
        total = distance = torch.zeros((), device=mask.device)
        for _, part in self._parts(rollout):
            with self.compute_loss_context_manager():
                log_probs = token_log_probs(model, part)
                loss = self.loss(log_probs, part)[part["mask"]].sum() / mask.sum()
            self.accelerator.backward(loss)
            total = total + loss.detach()
            away = kl(log_probs.detach(), part["reference"])
            distance = distance + away[part["mask"]].sum()
        if first:
            self._log("kl", distance.item() / len(mask))
        return total

    def _parts(self, rollout: Rollout) -> Iterator[tuple[list[int], Rollout]]:
        """Yield parts of about `tokens` tokens, long rows first, with their indices."""
        lengths = rollout["attention_mask"].sum(1).tolist()
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while order:
            rows, size = [], 0
            while order and (not rows or size + lengths[order[0]] <= self.tokens):
                size += lengths[order[0]]
                rows.append(order.pop(0))
            longest = lengths[rows[0]]
            yield (
                rows,
                {
                    name: tensor[rows][:, :longest]
                    if name in ("input_ids", "attention_mask", "labels")
                    else tensor[rows][:, : longest - 1]
                    if tensor.dim() == 2
                    else tensor[rows]
                    for name, tensor in rollout.items()
                },
            )

    def _log(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _log_answers(self, rollout: Rollout) -> None:
        """Log the rewards and lengths of a rollout."""
        mask, rewards = rollout["mask"], rollout["rewards"]
        groups = rewards.view(-1, self.group)
        same = (groups == groups[:, :1]).all(1)
        self._log("reward", rewards.mean().item())
        self._log("groups without signal", same.float().mean().item())
        self._log("answers/tokens", mask.sum(1).float().mean().item())


def _copy_adapter(model: torch.nn.Module, old: str, new: str) -> None:
    """Copy the weights of an adapter to another one."""
    found = dict(model.named_parameters())
    for name, weight in found.items():
        if (
            f".{old}." in name
            and (copy := found.get(name.replace(old, new))) is not None
        ):
            copy.data = weight.detach().clone()
