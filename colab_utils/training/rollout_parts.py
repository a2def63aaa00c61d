"""Answers in parts that one forward pass computes, with their prompts read once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from colab_utils.training.log_probs import share

Rollout = dict[str, torch.Tensor]


def parts(
    rollout: Rollout, group: int, tokens: int
) -> Iterator[tuple[list[int], Rollout]]:
    """Yield parts of about `tokens` tokens, and the indices of their rows.

    Each `group` rows are answers to one prompt. They follow each other, and share the
    tokens of their prompt but the last one. Long groups come first.
    """
    lengths = rollout["attention_mask"].sum(1).tolist()
    groups = [range(i, i + group) for i in range(0, len(lengths), group)]
    ranked = sorted(groups, key=lambda rows: -max(lengths[i] for i in rows))
    order = list(itertools.chain(*ranked))
    while order:
        rows: list[int] = []
        while order:
            longest = max(lengths[i] for i in [*rows, order[0]])
            if rows and (len(rows) + 1) * longest > tokens:
                break
            rows.append(order.pop(0))
        cut = max(lengths) - max(lengths[i] for i in rows)
        part = {name: _cut(t[rows], cut) for name, t in rollout.items()}
        numbers = [i // group for i in rows]
        first = [numbers.index(number) for number in numbers]
        prompt_but_last = part["mask"].int().argmax(1).tolist()
        copies = [
            count * (place != i)
            for i, (place, count) in enumerate(zip(first, prompt_but_last, strict=True))
        ]
        yield rows, share(part, first, copies)


def _cut(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Return rows without their last columns, which are padding."""
    return rows if rows.dim() == 1 else rows[:, : rows.shape[1] - columns]
