"""Measure a model on held-out rows: exact match, loss, and agreement of two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from colab_utils import data, generation, models, runtime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

COLUMNS = 128  # tokens of the vocabulary whose logits a score keeps


@dataclass(frozen=True)
class Accuracy:
    """The share of exact matches, overall and by category, and the model's answers."""

    share: float
    by_category: dict[str, float]
    answers: list[str]


def exact_match(answer: str, truth: str) -> bool:
    """Return whether two answers match, ignoring case, outer spaces and a final period.

    "paris." matches "Paris".
    """
    return answer.strip().rstrip(".").casefold() == truth.strip().rstrip(".").casefold()


def edit_similarity(text: str, truth: str) -> float:
    """Return 1 - edit distance / length of the longer text: 1 for equal texts.

    The distance counts inserted, deleted and replaced characters (Levenshtein 1966).
    """
    costs = list(range(len(truth) + 1))
    for i, one in enumerate(text, 1):
        before, costs[0] = costs[0], i
        for j, other in enumerate(truth, 1):
            swap = before + (one != other)
            before = costs[j]
            costs[j] = min(swap, costs[j] + 1, costs[j - 1] + 1)
    return 1 - costs[-1] / max(len(text), len(truth), 1)


def accuracy(
    model: PreTrainedModel, tokenizer: Tokenizer, rows: list[data.Row]
) -> Accuracy:
    """Answer each row's prompt by greedy decoding and compare with its last message.

    Raises ValueError if there are no rows.
    """
    _check_rows(rows)
    truths = [data.answer_of(row) for row in rows]
    longest = max(map(len, tokenizer(list(set(truths)))["input_ids"]))
    prompts: list[str | list[data.Message]] = [row["messages"][:-1] for row in rows]
    answers = generation.answers(model, tokenizer, prompts, max_new_tokens=longest + 4)
    matches = [exact_match(*pair) for pair in zip(answers, truths, strict=True)]
    by_category = _means(zip(_categories(rows), matches, strict=True))
    return Accuracy(sum(matches) / len(matches), by_category, answers)


@dataclass(frozen=True)
class Score:
    """The mean cross-entropy of answers (nats a token) and the model's top-1 tokens.

    `top_1` has one token id for each token of the answers. `logits` (tokens, at most
    128) holds the logits of some tokens, evenly spaced in the vocabulary.
    """

    loss: float
    top_1: torch.Tensor
    logits: torch.Tensor
    by_category: dict[str, float] = field(default_factory=dict)

    def agreement(self, other: Score) -> float:
        """Return the share of positions where both models have the same top-1 token.

        Raises ValueError when the two scores belong to different rows.
        """
        self._check_same_rows(other)
        return (self.top_1 == other.top_1).float().mean().item()

    def difference(self, other: Score) -> float:
        """Return |other - self| / |self| of the logits, without each position's mean.

        Unlike the agreement it does not depend on how sure the models are: 0 for equal
        logits, about 1.4 for those of unrelated models. Raises ValueError when the two
        scores belong to different rows.
        """
        self._check_same_rows(other)
        one, two = (s.logits - s.logits.mean(-1, keepdim=True) for s in (self, other))
        return ((two - one).norm() / one.norm()).item()

    def _check_same_rows(self, other: Score) -> None:
        if self.top_1.shape != other.top_1.shape:
            raise ValueError(
                f"One score has {len(self.top_1)} tokens, the other "
                f"{len(other.top_1)}: score both models on the same rows."
            )


def score(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: list[data.Row],
    batch_size: int = 4,
) -> Score:
    """Compute the loss and the top-1 tokens at each row's answers, without sampling.

    Raises ValueError if there are no rows.
    """
    import torch

    _check_rows(rows)
    names, tokens = _categories(rows), data.tokenize(rows, tokenizer)
    losses, top_1, some_logits = [], [], []
    categories: list[str] = []  # the category of each token
    for start in runtime.progress(range(0, len(rows), batch_size), "reading answers"):
        batch = tokens[start : start + batch_size]
        logits, truth, counts = _answer_logits(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        losses.append(loss.cpu())
        top_1.append(logits.argmax(-1).cpu())
        some_logits.append(logits[:, :: -(-logits.shape[1] // COLUMNS)].cpu())
        for name, count in zip(names[start:], counts, strict=False):
            categories += [name] * count
    all_losses = torch.cat(losses)
    by_category = _means(zip(categories, all_losses.tolist(), strict=True))
    logits = torch.cat(some_logits)
    return Score(all_losses.mean().item(), torch.cat(top_1), logits, by_category)


def _answer_logits(
    model: PreTrainedModel, rows: list[data.Tokens]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the logits and ids of the answers' tokens, and each row's token count."""
    import torch

    ids = _padded([row["input_ids"] for row in rows]).to(model.device)
    real = _padded([[1] * len(row["input_ids"]) for row in rows]).to(model.device)
    with torch.inference_mode(), models.in_mode(model, training=False):
        logits = model(input_ids=ids, attention_mask=real).logits
    # The logits at a position predict the next token.
    trained = _padded([row["assistant_masks"] for row in rows]).to(model.device)
    trained = trained[:, 1:].bool()
    counts = trained.sum(dim=1).tolist()
    return logits[:, :-1][trained].float(), ids[:, 1:][trained], counts


def _padded(rows: list[list[int]]) -> torch.Tensor:
    """Return a tensor (rows, longest) with zeros after each shorter row."""
    import torch

    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True
    )


@dataclass(frozen=True)
class HeldOut:
    """One number for held-out rows: accuracy (a share) or loss (nats a token).

    `answers` are the model's answers if the metric is accuracy, otherwise empty.
    """

    metric: str
    value: float
    by_category: dict[str, float]
    answers: list[str]

    def __str__(self) -> str:
        """Name the metric and its value: "held-out accuracy 95.7%"."""
        if self.metric == "accuracy":
            return f"held-out accuracy {self.value:.1%}"
        return f"held-out loss {self.value:.3f} nats a token"


def held_out(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: list[data.Row],
    metric: str,
    scored: Score | None = None,
) -> HeldOut:
    """Measure `metric`, "accuracy" or "loss", on held-out rows.

    `scored` is the model's score on these rows, if it is known already.
    """
    if metric not in ("accuracy", "loss"):
        raise ValueError(f'metric is {metric!r}; it can be "accuracy" or "loss".')
    if metric == "loss":
        scored = scored or score(model, tokenizer, rows)
        return HeldOut(metric, scored.loss, scored.by_category, [])
    found = accuracy(model, tokenizer, rows)
    return HeldOut(metric, found.share, found.by_category, found.answers)


def chance(rows: list[data.Row]) -> float:
    """Return the accuracy of always giving the most frequent answer of a category."""
    _check_rows(rows)
    answers: dict[str, Counter[str]] = {}
    for category, row in zip(_categories(rows), rows, strict=True):
        answers.setdefault(category, Counter())[data.answer_of(row)] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(rows)


def _check_rows(rows: list[data.Row]) -> None:
    if not rows:
        raise ValueError("There are no rows to measure on: is the test file empty?")


def _categories(rows: Sequence[data.Row]) -> list[str]:
    """Return each row's category; one name for all if no row has a category."""
    found = [row.get("category", "") for row in rows]
    blank = "(none)" if any(found) else "all"
    return [category or blank for category in found]


def _means(labeled: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of the values of each label, sorted by label."""
    values: dict[str, list[float]] = {}
    for label, value in labeled:
        values.setdefault(label, []).append(value)
    return {label: sum(found) / len(found) for label, found in sorted(values.items())}
