"""Pairs of answers as tokens: rows, micro-batches that fit a plan, and batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from colab_utils import data, runtime
from colab_utils.training.log_probs import pad, share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.memory import Plan

ANSWERS = ("chosen", "rejected")


def tokenize(rows: Sequence[data.Row], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return each preference row's two sequences of tokens, to train on.

    {"index": 0, "chosen": {"input_ids": [...], "assistant_masks": [...]}, "rejected":
    ...}; the masks are 1 for the tokens of the answers. Raises ValueError for rows of
    another kind, and for an answer without tokens.
    """
    found = []
    for index, row in enumerate(runtime.progress(rows, "tokenizing")):
        if (kind := data.kind_of(row)) != "preference":
            raise ValueError(
                f"Line {row.get('line', index + 1)} is a {kind} row, but this trainer "
                "compares two answers: choose a preference dataset."
            )
        pair = dict(zip(ANSWERS, data.encodings(row, tokenizer), strict=True))
        for name, tokens in pair.items():
            if not any(tokens["assistant_masks"]):
                raise ValueError(
                    f"The {name} answer of line {row.get('line', index + 1)} has no "
                    "token to train on: remove the row."
                )
        found.append({"index": index, **pair})
    return found


def batches(
    pairs: Sequence[dict[str, Any]], plan: Plan, update: int
) -> tuple[int, int]:
    """Return the pairs of a micro-batch and the micro-batches of an update.

    Any pairs that a micro-batch may draw fit the plan's tokens: with padding on the
    reference path, without it on the fast path. An update has at least `update` pairs.
    Raises ValueError if the longest pair has more tokens than the plan.
    """
    lengths = [[len(pair[name]["input_ids"]) for name in ANSWERS] for pair in pairs]
    padded = [2 * max(map(max, lengths))] * len(lengths)
    sizes = list(map(sum, lengths)) if plan.fast else padded
    if max(sizes) > plan.tokens:
        raise ValueError(
            f"The longest pair has {max(sizes):,} tokens, but the plan is for "
            f"{plan.tokens:,}: plan with `longest` = {max(sizes):,}."
        )
    return micro_batches(sizes, plan.tokens, update)


def micro_batches(sizes: Sequence[int], tokens: int, update: int) -> tuple[int, int]:
    """Return the rows of a micro-batch and the micro-batches of an update.

    `sizes` are the tokens of the rows. Any rows that a micro-batch may draw have at
    most `tokens` tokens together. An update has at least `update` rows.
    """
    longest_first = itertools.accumulate(sorted(sizes, reverse=True))
    fitting = max(1, sum(total <= tokens for total in longest_first))
    accumulation = -(-update // min(fitting, update))
    return -(-update // accumulation), accumulation


class Collator:
    """Pad pairs into a batch: first the chosen sequences, then the rejected ones."""

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ids, mask and labels (2 x pairs, tokens), and the pairs' indices.

        A rejected sequence shares the prompt with the chosen one, but for its last
        token, whose two successors have a loss.
        """
        rows = [pair[name] for name in ANSWERS for pair in pairs]
        both = zip(rows, rows[len(pairs) :], strict=False)
        copies = [0] * len(pairs) + [_same_tokens(one, other) for one, other in both]
        batch = pad(
            [row["input_ids"] for row in rows], [row["assistant_masks"] for row in rows]
        )
        batch["index"] = torch.tensor([pair["index"] for pair in pairs])
        return share(batch, [*range(len(pairs))] * 2, copies)


def _same_tokens(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Return how many tokens both sequences begin with, before one is trained."""
    columns = (
        row[name] for name in ("input_ids", "assistant_masks") for row in (one, other)
    )
    alike = (a == b and not (m or n) for a, b, m, n in zip(*columns, strict=False))
    return max(0, sum(itertools.takewhile(bool, alike)) - 1)
