"""Reinforcement learning of a Llama with adapters: GRPO and PPO on one quantized base.

A step has three parts. The policy, which is the adapter "default", writes answers to
some prompts. A function of the reader's scores them. The update makes the answers more
probable that are better than expected. GRPO expects the mean of the other answers to
the same prompt; PPO expects what a second adapter with a head, the value, predicts. A
third adapter, a copy of the policy before the first step, is the reference. Source:
Ouyang et al. 2022, "Training language models to follow instructions". The formulas are
in `objectives`, and the common part of both trainers is in `rollouts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from colab_utils.training import objectives
from colab_utils.training.log_probs import token_log_probs
from colab_utils.training.reward_model import ScoreHead, hidden_states, use_adapter
from colab_utils.training.rollout_parts import Rollout
from colab_utils.training.rollouts import RolloutTrainer
from colab_utils.training.trainer import model_of

VALUE = "value"
VALUE_FILE = "value.safetensors"


class FastGRPOTrainer(RolloutTrainer):
    """Train a policy with GRPO: an answer competes with the others to its prompt."""

    def __init__(
        self,
        *args: Any,
        group: int = 8,
        beta: float = 0.04,
        updates: int = 1,
        **kwargs: Any,
    ) -> None:
        """Raise ValueError for a group of one answer."""
        if group < 2:
            raise ValueError(
                f"group = {group}, but GRPO compares answers to the same prompt: it "
                "must be 2 or more."
            )
        super().__init__(*args, group=group, beta=beta, updates=updates, **kwargs)

    def judge(self, rollout: Rollout) -> Rollout:
        """Return the `advantages` of a rollout's tokens: those of their answer."""
        found = objectives.group_advantages(rollout["rewards"], self.group)
        return {"advantages": found[:, None].expand(rollout["mask"].shape)}

    def loss(self, log_probs: torch.Tensor, part: Rollout) -> torch.Tensor:
        """Return the losses of a part's tokens, with the KL divergence."""
        away = objectives.kl(log_probs, part["reference"])
        return super().loss(log_probs, part) + self.beta * away


class FastPPOTrainer(RolloutTrainer):
    """Train a policy with PPO: a second adapter with a head predicts the reward.

    The KL divergence is a part of the reward, as in InstructGPT. `decay` is that of
    `objectives.gae`. The value begins as a copy of the policy with a head of zeros; it
    is saved in checkpoints, and deleted after the training.
    """

    def __init__(
        self,
        *args: Any,
        group: int = 1,
        beta: float = 0.05,
        updates: int = 4,
        decay: float = 0.95,
        value_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, group=group, beta=beta, updates=updates, **kwargs)
        self.decay, self.value_weight = decay, value_weight
        self.head = ScoreHead(model_of(self).config.hidden_size)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL's trainers do."""
        model = model_of(self)
        model.add_module("score_head", self.head.to(model.device))
        try:
            with self.copy_of_policy(VALUE):
                return super().train(*args, **kwargs)
        finally:
            del model.score_head

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """Add the value's adapter; its head is a part of the model."""
        known = self.optimizer is not None
        optimizer = super().create_optimizer(*args)
        if not known:
            optimizer.add_param_group({"params": [*self._value_weights().values()]})
        return optimizer

    def judge(self, rollout: Rollout) -> Rollout:
        """Return the `advantages`, and the `values` and `returns` they came from."""
        mask = rollout["mask"]
        with use_adapter(self.peft, VALUE):
            values = self.score(rollout, self.values) * mask
        old = rollout.get("old")
        if old is None:
            old = self.score(rollout, token_log_probs)
        rewards = self.beta * (rollout["reference"] - old) * mask
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask).argmax(1)
        rewards[torch.arange(len(mask)), last] += rollout["rewards"]
        advantages = objectives.gae(rewards, values, self.decay)
        found = {"values": values, "returns": (advantages + values) * mask}
        return found | {"advantages": objectives.whiten(advantages, mask)}

    def values(self, model: torch.nn.Module, part: Rollout) -> torch.Tensor:
        """Return the predicted reward (rows, tokens - 1) before each token."""
        hidden = hidden_states(model, part["input_ids"], part["attention_mask"])
        return self.head(hidden)[:, :-1, 0]

    def gradient(
        self, model: torch.nn.Module, rollout: Rollout, first: bool = False
    ) -> torch.Tensor:
        """Compute the gradients of the policy and of the value; return both losses."""
        total = super().gradient(model, rollout, first)
        count, wrong = rollout["mask"].sum(), torch.zeros_like(total)
        with use_adapter(self.peft, VALUE):
            for _, part in self.parts(rollout):
                with self.compute_loss_context_manager():
                    new, old = self.values(model, part), part["values"]
                    losses = objectives.value_loss(new, old, part["returns"], self.clip)
                    loss = losses[part["mask"]].sum() / count
                self.accelerator.backward(self.value_weight * loss)
                wrong += loss.detach()
        if first:
            self._log("value loss", wrong.item())
        return total + self.value_weight * wrong

    def _value_weights(self) -> dict[str, torch.nn.Parameter]:
        named = self.peft.named_parameters()
        return {name: weight for name, weight in named if f".{VALUE}." in name}

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        found = self._value_weights()
        if found:  # not after the training
            weights = {name: weight.detach() for name, weight in found.items()}
            folder = Path(output_dir or str(self.args.output_dir))
            save_file(
                weights | {"head": self.head.weight.detach()}, folder / VALUE_FILE
            )

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        stored = load_file(Path(checkpoint) / VALUE_FILE)
        self.head.weight.data.copy_(stored.pop("head"))
        for name, weight in self._value_weights().items():
            weight.data.copy_(stored[name])
