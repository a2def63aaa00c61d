"""Write answers with the model in training, score them, and train on them.

This is the part that GRPO and PPO share; they are in `rewards`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from datasets import Dataset

from colab_utils import data, models
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.generation.answer_text import AnswerText
from colab_utils.generation.continuing import new_tokens
from colab_utils.generation.prompts import as_messages, context_length, prompt_tokens
from colab_utils.generation.sampling import sampler
from colab_utils.training import objectives
from colab_utils.training.log_probs import pad, token_log_probs
from colab_utils.training.reward_model import use_adapter
from colab_utils.training.rollout_parts import Rollout, parts
from colab_utils.training.sft import OwnBatchesTrainer
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Scores the answers to rows of a dataset.
Reward = Callable[[list[data.Row], list[str]], Sequence[float]]
Result = TypeVar("Result")
POLICY, REFERENCE = "default", "reference"


class RolloutTrainer(OwnBatchesTrainer):
    """The part of GRPO and PPO that writes, scores and updates.

    `rows` are the rows of a dataset; only their prompts are read. `reward` returns a
    number for each row and answer. A step takes `per_device_train_batch_size` prompts,
    samples `group` answers of up to `answer_tokens` tokens to each, and makes `updates`
    updates. `beta` weighs the KL divergence from the reference. A forward pass has
    about `tokens` tokens, and `writers` answers are written at once.
    """

    def __init__(
        self,
        *args: Any,
        rows: Sequence[data.Row],
        reward: Reward,
        answer_tokens: int,
        group: int,
        beta: float,
        updates: int,
        clip: float = 0.2,
        tokens: int = 2048,
        writers: int = 64,
        **kwargs: Any,
    ) -> None:
        self.rows, self.reward = list(rows), reward
        self.answer_tokens, self.group, self.updates = answer_tokens, group, updates
        self.beta, self.clip = beta, clip
        self.tokens, self.writers = tokens, writers
        numbers = range(len(self.rows))
        kwargs["train_dataset"] = Dataset.from_dict(
            {"index": numbers, "input_ids": [[0] for _ in numbers]}
        )
        kwargs["data_collator"] = _indices
        super().__init__(*args, **kwargs)
        self.prompts = self._read_prompts()

    def _read_prompts(self) -> list[list[int]]:
        """Return the token ids of the rows' prompts."""
        chats = Conversations(self.tokenizer_)
        context = context_length(model_of(self))
        return [
            prompt_tokens(
                chats, as_messages(row["messages"][:-1]), self.answer_tokens, context
            )
            for row in self.rows
        ]

    @property
    def tokenizer_(self) -> Tokenizer:
        """The tokenizer."""
        return cast("Tokenizer", self.processing_class)

    @property
    def peft(self) -> PeftModel:
        """The model with its adapters."""
        return cast("PeftModel", self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL's trainers do; a copy of the adapter is the reference."""
        with self.copy_of_policy(REFERENCE):
            return super().train(*args, **kwargs)

    @contextmanager
    def copy_of_policy(self, name: str) -> Iterator[None]:
        """Add a copy of the policy as another adapter during this block."""
        model = self.peft
        model.add_adapter(name, model.peft_config[POLICY])
        weights = dict(model.named_parameters())
        for old, weight in weights.items():
            copy = weights.get(old.replace(f".{POLICY}.", f".{name}."))
            if copy is not None and copy is not weight:
                copy.data = weight.detach().clone()
        model.set_adapter(POLICY)
        try:
            yield
        finally:
            model.delete_adapter(name)
            model.set_adapter(POLICY)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Write and score answers, and compute the gradient of the last update."""
        began = time.perf_counter()
        rollout = self._again(
            lambda: self.roll_out(inputs["index"].tolist()), self._write_fewer
        )
        self._log("seconds/answers", time.perf_counter() - began)
        model.train()
        for number in range(self.updates):
            if number:
                self._update(model)
            loss = self._again(
                functools.partial(self.gradient, model, rollout, first=not number),
                self._smaller_parts,
            )
        return loss  # the trainer itself makes the last update

    def _again(self, work: Callable[[], Result], less: Callable[[], str]) -> Result:
        """Return `work()`; if the memory runs out, once with what `less` changes."""
        if self.args.gradient_accumulation_steps > 1:  # gradients do not begin at zero
            return work()
        self.recovery.begin([])
        return self.recovery.run(work, less, work)

    def _write_fewer(self) -> str:
        """Write and score fewer answers at once."""
        self.writers = max(1, self.writers // 2)
        self.tokens = max(1, self.tokens // 2)
        return (
            f"with {self.writers} answers written at once, and {self.tokens:,} tokens "
            "scored"
        )

    def _smaller_parts(self) -> str:
        """Train on fewer tokens at once, in layers with gradient checkpointing."""
        self.tokens = max(1, self.tokens // 2)
        most = max(self.tokens, max(map(len, self.prompts)) + self.answer_tokens)
        how = self.recovery.checkpoint_more(most)
        return f"in parts of {self.tokens:,} tokens" + (f", {how}" if how else "")

    def _update(self, model: torch.nn.Module) -> None:
        if limit := self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(model.parameters(), limit)
        cast("torch.optim.Optimizer", self.optimizer).step()
        model.zero_grad()

    def roll_out(self, indices: Sequence[int]) -> Rollout:
        """Return scored answers to the prompts with these indices.

        A dict of tensors that begin with the rows: the batch of `pad`; `mask` (rows,
        tokens - 1) of the answers' tokens; their log-probabilities by the policy
        (`old`) and by the `reference`; the `rewards` (rows,); and what `judge` returns.
        """
        chosen = [i for i in indices for _ in range(self.group)]
        answers, texts = self.write(chosen)
        rewards = torch.as_tensor(
            self.reward([self.rows[i] for i in chosen], texts), dtype=torch.float32
        )
        if rewards.shape != (len(chosen),) or not rewards.isfinite().all():
            raise ValueError(
                f"The reward function returned {tuple(rewards.shape)} numbers for "
                f"{len(chosen)} answers, or NaN: it must return a number for each."
            )
        pairs = list(zip([self.prompts[i] for i in chosen], answers, strict=True))
        batch = pad(
            [[*prompt, *answer] for prompt, answer in pairs],
            [[0] * len(prompt) + [1] * len(answer) for prompt, answer in pairs],
        )
        device = model_of(self).device
        rollout = {n: t.to(device) for n, t in (batch | {"rewards": rewards}).items()}
        rollout["mask"] = rollout["labels"][:, 1:] != -100
        if self.updates > 1:  # else the policy is still the one that wrote
            rollout["old"] = self.score(rollout, token_log_probs)
        with use_adapter(self.peft, REFERENCE):
            rollout["reference"] = self.score(rollout, token_log_probs)
        self._log_answers(rollout)
        return rollout | self.judge(rollout)

    def write(self, indices: Sequence[int]) -> tuple[list[list[int]], list[str]]:
        """Sample an answer to each prompt; return the tokens and the texts."""
        model, tokenizer = model_of(self), self.tokenizer_
        ends, sample = models.stop_tokens(model, tokenizer), sampler(do_sample=True)
        prompts = [self.prompts[i] for i in indices]
        answers = new_tokens(
            model, prompts, ends, self.answer_tokens, self.writers, sample
        )
        texts = []
        for ids in answers:
            text = AnswerText(tokenizer, ends, [], self.answer_tokens)
            for token in ids:
                text.add(token)
            texts.append(text.finish())
        ended = sum(ids[-1] in ends for ids in answers)
        self._log("answers/cut off", 1 - ended / len(answers))
        return answers, texts

    def judge(self, rollout: Rollout) -> Rollout:
        """Return the `advantages` of a rollout's tokens, (rows, tokens - 1)."""
        raise NotImplementedError

    @torch.no_grad()
    def score(
        self,
        rollout: Rollout,
        read: Callable[[torch.nn.Module, Rollout], torch.Tensor],
    ) -> torch.Tensor:
        """Return what `read` gives for a model and the parts of a rollout."""
        model = model_of(self).train()
        found = torch.zeros(rollout["mask"].shape, device=rollout["mask"].device)
        for rows, part in self.parts(rollout):
            with self.accelerator.autocast():
                new = read(model, part).float()
            found[rows, : new.shape[1]] = new
        return found

    def loss(self, log_probs: torch.Tensor, part: Rollout) -> torch.Tensor:
        """Return the losses of a part's tokens."""
        old = part.get("old", log_probs.detach())
        advantages = part["advantages"]
        return objectives.clipped_loss(log_probs, old, advantages, self.clip)

    def gradient(
        self, model: torch.nn.Module, rollout: Rollout, first: bool = False
    ) -> torch.Tensor:
        """Compute the gradient of the mean loss of a rollout's tokens; return it."""
        mask = rollout["mask"]
        total = distance = torch.zeros((), device=mask.device)
        for _, part in self.parts(rollout):
            with self.compute_loss_context_manager():
                log_probs = token_log_probs(model, part)
                loss = self.loss(log_probs, part)[part["mask"]].sum() / mask.sum()
            self.accelerator.backward(loss)
            total = total + loss.detach()
            away = objectives.kl(log_probs.detach(), part["reference"])
            distance = distance + away[part["mask"]].sum()
        if first:
            self._log("kl", distance.item() / len(mask))
        return total

    def parts(self, rollout: Rollout) -> Iterator[tuple[list[int], Rollout]]:
        """Yield parts of about `tokens` tokens, and the indices of their rows."""
        return parts(rollout, self.group, self.tokens)

    def _log(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _log_answers(self, rollout: Rollout) -> None:
        """Log the rewards and lengths of a rollout."""
        rewards = rollout["rewards"]
        groups = rewards.view(-1, self.group)
        same = (groups == groups[:, :1]).all(1)
        self._log("reward", rewards.mean().item())
        self._log("answers/tokens", rollout["mask"].sum(1).float().mean().item())
        if self.group > 1:
            self._log("groups without signal", same.float().mean().item())


def _indices(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch of rows that stand for prompts of `RolloutTrainer`."""
    return {"index": torch.tensor([row["index"] for row in rows])}
