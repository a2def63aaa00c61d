"""Measure a model on held-out rows: exact match, loss, and agreement of two models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils import generation, models, runtime
from colab_utils.data import dataset as data

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def _check(rows: list[data.Row]) -> None:
    if not rows:
        raise ValueError("There are no rows to measure on: is the test file empty?")


@dataclass(frozen=True)
class Accuracy:
    """Share of exact matches, overall and by attribute, with the answers given."""

    share: float
    by_attribute: dict[str, float]
    answers: list[str]


def same(answer: str, truth: str) -> bool:
    """Exact match but for case, outer spaces and a full stop: "paris." is "Paris"."""
    return answer.strip().rstrip(".").casefold() == truth.strip().rstrip(".").casefold()


def accuracy(
    model: PreTrainedModel, tokenizer: Tokenizer, rows: list[data.Row]
) -> Accuracy:
    """Answer each row's prompt greedily and compare with its last message.

    Raises ValueError without rows.
    """
    _check(rows)
    truths = {data.answer_of(row) for row in rows}
    room = max(map(len, tokenizer(list(truths))["input_ids"])) + 4
    prompts = [row["messages"][:-1] for row in rows]
    made = generation.answers(model, tokenizer, prompts, max_new_tokens=room)
    right = [same(a, data.answer_of(r)) for a, r in zip(made, rows, strict=True)]
    groups: dict[str, list[bool]] = {}
    for row, ok in zip(rows, right, strict=True):
        groups.setdefault(row.get("attribute", "all"), []).append(ok)
    shares = {name: sum(oks) / len(oks) for name, oks in sorted(groups.items())}
    return Accuracy(sum(right) / len(right), shares, made)


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy (nats a token) of answers, and the tokens preferred there."""

    loss: float
    choices: torch.Tensor

    def agreement(self, other: Score) -> float:
        """Share of the answers' positions where both models prefer the same token.

        Raises ValueError when the two scores are of different rows.
        """
        if self.choices.shape != other.choices.shape:
            raise ValueError(
                f"One score is of {len(self.choices)} tokens, the other of "
                f"{len(other.choices)}: score both models on the same rows."
            )
        return (self.choices == other.choices).float().mean().item()


def score(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: list[data.Row],
    batch_size: int = 4,
) -> Score:
    """Read each row's answers as if they were the model's own: loss and choices.

    Raises ValueError without rows.
    """
    import torch

    _check(rows)
    losses, choices = [], []
    for start in runtime.progress(range(0, len(rows), batch_size), "reading answers"):
        batch = tokenizer.apply_chat_template(
            [row["messages"] for row in rows[start : start + batch_size]],
            padding=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode(), models.in_mode(model, training=False):
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        # The logits at a position speak of the token after it.
        spoken = torch.as_tensor(batch["assistant_masks"]).bool().to(model.device)
        predicted = logits[:, :-1][spoken[:, 1:]].float()
        truth = batch["input_ids"][:, 1:][spoken[:, 1:]]
        loss = torch.nn.functional.cross_entropy(predicted, truth, reduction="none")
        losses.append(loss.cpu())
        choices.append(predicted.argmax(-1).cpu())
    return Score(torch.cat(losses).mean().item(), torch.cat(choices))


@dataclass(frozen=True)
class HeldOut:
    """One number for rows never trained on: accuracy (a share) or loss (nats).

    `answers` are what was said to each row where accuracy is measured, else none.
    """

    metric: str
    value: float
    by_attribute: dict[str, float]
    answers: list[str]

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"held-out accuracy {self.value:.1%}"
        return f"held-out loss {self.value:.3f} nats a token"


def held_out(
    model: PreTrainedModel, tokenizer: Tokenizer, rows: list[data.Row], metric: str
) -> HeldOut:
    """Measure `metric`, "accuracy" or "loss", on held-out rows."""
    if metric not in ("accuracy", "loss"):
        raise ValueError(f'metric is {metric!r}; it can be "accuracy" or "loss".')
    if metric == "loss":
        return HeldOut(metric, score(model, tokenizer, rows).loss, {}, [])
    found = accuracy(model, tokenizer, rows)
    return HeldOut(metric, found.share, found.by_attribute, found.answers)


def chance(rows: list[data.Row]) -> float:
    """Accuracy of always giving the most frequent answer of each attribute."""
    _check(rows)
    answers: dict[str, Counter] = {}
    for row in rows:
        group = answers.setdefault(row.get("attribute", "all"), Counter())
        group[data.answer_of(row)] += 1
    return sum(max(group.values()) for group in answers.values()) / len(rows)
