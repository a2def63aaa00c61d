"""Direct preference optimization (DPO) of a Llama with adapters, on the fast path.

A row has two answers, a better and a worse one. The loss compares their probabilities,
relative to those of a reference, the model before the first step. Source: Rafailov et
al. 2023, "Direct Preference Optimization".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from colab_utils import models, runtime
from colab_utils.training.log_probs import token_log_probs
from colab_utils.training.pairs import ANSWERS, Collator
from colab_utils.training.sft import OwnBatchesTrainer
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    from datasets import Dataset

LOSSES = ("sigmoid", "ipo", "orpo")


def loss_of(
    kind: str,
    policy: torch.Tensor,
    reference: torch.Tensor | None,
    lengths: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return the losses (pairs,) of the answers' log-probabilities (pairs, 2).

    A column each for the chosen and the rejected answer; `lengths` (pairs, 2) are their
    tokens. "sigmoid" is DPO's loss. "ipo" (Azar et al. 2023) has a finite optimum, and
    compares means of tokens, as TRL does. "orpo" (Hong et al. 2024) needs no reference,
    and contains the loss of supervised fine-tuning.
    """
    if kind == "orpo":
        means = policy / lengths
        odds = means - torch.log1p(-means.exp())
        return -means[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
    if reference is None:
        raise ValueError(f"The loss {kind!r} needs the reference's log-probabilities.")
    better, worse = (policy - reference).unbind(1)
    if kind == "sigmoid":
        return -F.logsigmoid(beta * (better - worse))
    if kind == "ipo":
        gap = better / lengths[:, 0] - worse / lengths[:, 1]
        return (gap - 1 / (2 * beta)) ** 2
    raise ValueError(f"The loss is {kind!r}; it can be {', '.join(LOSSES)}.")


class Scores(NamedTuple):
    """The log-probabilities of answers and their tokens, both (pairs, 2)."""

    log_probs: torch.Tensor
    lengths: torch.Tensor


def scores(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Scores:
    """Return the scores of a batch of `pairs.Collator`, on the fast path if it is on.

    The model must be in training mode for the fast path; otherwise logits are computed.
    """
    losses = token_log_probs(model, batch)
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    return Scores(*(half.view(2, -1).T for half in (losses.sum(1), counts)))


class PairTrainer(OwnBatchesTrainer):
    """The part of a trainer on pairs that does not depend on the loss.

    The dataset is made of `pairs.tokenize`, and the loss is a mean over pairs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["data_collator"] = Collator()
        super().__init__(*args, **kwargs)


class FastDPOTrainer(PairTrainer):
    """Train on pairs of answers with DPO, or a loss like it, on the fast path.

    `loss` is one of `LOSSES`, and `sft` the weight of the chosen answers' own loss that
    is added. The dataset is made of `pairs.tokenize`. Call `score_reference` first.
    The reference is the model as the trainer gets it: the base model with a new adapter
    (B = 0), or with that of supervised fine-tuning. So no second model is loaded.
    """

    def __init__(
        self,
        *args: Any,
        beta: float = 0.1,
        loss: str = "sigmoid",
        sft: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Raise ValueError for an unknown loss."""
        if loss not in LOSSES:
            raise ValueError(f"The loss is {loss!r}; it can be {', '.join(LOSSES)}.")
        self.beta, self.loss, self.sft = beta, loss, sft
        self.reference: torch.Tensor | None = None
        super().__init__(*args, **kwargs)

    def score_reference(self, file: Path | None = None) -> torch.Tensor:
        """Compute the reference's log-probabilities (pairs, 2) of all answers, once.

        With a `file` they are kept there, and read if the file has those of the same
        rows and the same reference. So a resumed training reads them: build the trainer
        as before, call this, then `train`, which loads the checkpoint's adapter. Raises
        ValueError after the first step.
        """
        if self.state.global_step:
            raise ValueError(
                "The model was trained already, so it is no longer its own reference. "
                "Build the trainer again."
            )
        key = self.reference_key()
        found = _read(file, key) if file else None
        if found is None:
            found = self.log_probs(self.pairs)
            if file:
                file.parent.mkdir(exist_ok=True)
                part = file.with_name(f".{file.name}")
                save_file({"log_probs": found}, part, {"key": key})
                part.replace(file)
        self.reference = found
        return found

    @property
    def pairs(self) -> Dataset:
        """The rows that the trainer trains on."""
        return cast("Dataset", self.train_dataset)

    @torch.no_grad()
    def log_probs(self, pairs: Any) -> torch.Tensor:
        """Return the model's log-probabilities (pairs, 2) of `pairs.tokenize`."""
        model, size = model_of(self), self.args.per_device_train_batch_size
        parts = []
        for start in runtime.progress(range(0, len(pairs), size), "scoring pairs"):
            some = [pairs[i] for i in range(start, min(start + size, len(pairs)))]
            batch = self._prepare_inputs(Collator()(some))
            with models.in_mode(model, training=True), self.accelerator.autocast():
                parts.append(scores(model, batch).log_probs.float().cpu())
        return torch.cat(parts)

    def reference_key(self) -> str:
        """Return a hash of the rows, the base model's name and the trained weights.

        An A whose B is 0 changes nothing, and another GPU draws another one.
        """
        model, trained = model_of(self), _trainable(model_of(self))
        digest = hashlib.sha256(str(model.config.name_or_path).encode())
        digest.update(json.dumps(list(self.pairs)).encode())
        for name, weight in trained.items():
            if trained.get(name.replace("lora_A", "lora_B"), weight).any():
                digest.update(name.encode())
                digest.update(weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a batch's pairs, and log rewards and margins."""
        policy, lengths = scores(model, inputs)
        reference = None
        if self.loss != "orpo":
            if self.reference is None:
                raise ValueError("Call trainer.score_reference() before the training.")
            reference = self.reference[inputs["index"].cpu()].to(policy)
        loss = loss_of(self.loss, policy, reference, lengths, self.beta).mean()
        if self.sft:
            loss = loss - self.sft * policy[:, 0].sum() / lengths[:, 0].sum()
        self._log_pairs(policy.detach(), reference)
        return (loss, {"log_probs": policy}) if return_outputs else loss

    def _log_pairs(self, policy: torch.Tensor, reference: torch.Tensor | None) -> None:
        """Log what TRL's DPOTrainer logs of a step."""
        mode = "train" if self.model and self.model.training else "eval"
        metrics = self._metrics[mode]
        for name, column in zip(ANSWERS, policy.unbind(1), strict=True):
            metrics[f"logps/{name}"].append(column.mean().item())
        if reference is None:
            return
        rewards = self.beta * (policy - reference)
        for name, column in zip(ANSWERS, rewards.unbind(1), strict=True):
            metrics[f"rewards/{name}"].append(column.mean().item())
        margins = rewards[:, 0] - rewards[:, 1]
        metrics["rewards/margins"].append(margins.mean().item())
        metrics["rewards/accuracies"].append((margins > 0).float().mean().item())


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trainable weights by name."""
    named = model.named_parameters()
    return {name: p.detach() for name, p in named if p.requires_grad}


def _read(file: Path, key: str) -> torch.Tensor | None:
    """Return the log-probabilities of a file if they were computed for this key."""
    if not file.exists():
        return None
    with safe_open(file, framework="pt") as stored:
        if (stored.metadata() or {}).get("key") != key:
            return None
        found: torch.Tensor = stored.get_tensor("log_probs")
    print(f"reference: read from {file.name}")
    return found
