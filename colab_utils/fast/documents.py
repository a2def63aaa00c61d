"""Rows of a batch as one row of documents, in groups for the attention kernel.

The backward kernel of torch's memory-efficient attention accumulates gradients in
float32, and pads each document of a call to the longest one. One document of 1,024
tokens and thirty of 33 would take fifteen times the memory of their tokens. If padding
takes too much, the documents are sorted by length, and each group of similar lengths is
a call of its own.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from colab_utils.fast.attention import Documents, Group, Shared
from colab_utils.memory.costs import attention_tokens


class Tokens(NamedTuple):
    """The T tokens of a batch, document after document.

    A target (T,) is the label of the next token, or -100 at a document's end; positions
    are (T,). `order` (T,) sorts the batch's tokens by document; None if they stay. With
    `shared`, T is the number of tokens without copies, and `order` are their places.
    """

    targets: torch.Tensor
    positions: torch.Tensor
    order: torch.Tensor | None
    groups: list[Group]
    shared: Shared | None = None

    @property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return max(group.documents.longest for group in self.groups)


def flatten(
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    limit: int | None = None,
) -> Tokens:
    """Return the rows of a batch, padded or packed, as one row of T tokens.

    A document begins at a row's first token, and at each position 0. A group has at
    most `limit` tokens with its padding, by default `attention_tokens`. Raises
    ValueError for a mask that hides more than padding.
    """
    whole = torch.ones_like(labels) if mask is None else mask
    if whole.shape != labels.shape:
        raise ValueError(
            f"The attention mask has the shape {tuple(whole.shape)}, but the fast path "
            f"takes {tuple(labels.shape)}, rows by tokens. Call "
            "training.use_reference_path(trainer) for other masks."
        )
    keep = whole.bool()
    first = keep.clone()
    first[:, 1:] &= ~keep[:, :-1]
    if positions is None:
        positions = keep.cumsum(-1) - 1
    begins = ((positions.expand_as(keep) == 0) | first)[keep]
    labels, positions = labels[keep], positions.expand_as(keep)[keep]
    if not len(labels):
        raise ValueError(
            "The attention mask leaves no token to train on: remove the empty rows."
        )
    starts = begins.nonzero().squeeze(1)
    ends = torch.cat([starts, starts.new_tensor([len(labels)])])
    rows, *lengths = torch.cat([first.sum(1).max()[None], ends.diff()]).tolist()
    if rows > 1:
        raise ValueError(
            "The attention mask has a hole, but the fast path takes padding only at "
            "the beginning and the end of a row. Call "
            "training.use_reference_path(trainer)."
        )
    targets = torch.full_like(labels, -100)
    targets[:-1] = torch.where(begins[1:], -100, labels[1:])
    limit = attention_tokens(len(labels)) if limit is None else limit
    if len(lengths) * max(lengths) <= limit:
        documents = Documents(ends.int(), max(lengths))
        return Tokens(targets, positions, None, [Group(slice(None), documents)])
    ranked = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ranks = torch.tensor(ranked, device=labels.device).argsort()
    order = ranks.repeat_interleave(ends.diff()).argsort(stable=True)
    groups = group([lengths[i] for i in ranked], limit, labels.device)
    return Tokens(targets[order], positions[order], order, groups)


def share(tokens: Tokens, mask: torch.Tensor, shared: torch.Tensor) -> Tokens:
    """Return the tokens of `flatten` without the copies of those that rows share.

    For each row, `shared` (rows, 2) has the number of another row, and how many tokens
    both begin with. The other row shares none itself. Shared tokens have no targets.
    """
    whole, (owner, count) = mask.bool(), shared.unbind(1)
    first = ~(whole & (whole.cumsum(-1) <= count[:, None]))
    place = (first & whole).view(-1).cumsum(0).view(whole.shape) - 1
    source = torch.where(first, place, place[owner])[whole]
    keep = first[whole]
    order = torch.arange(len(source), device=mask.device)
    order = order if tokens.order is None else tokens.order
    ranks = order.argsort()
    found = Shared(source[order], ranks[keep])
    in_turn = (tokens.targets[ranks][keep], tokens.positions[ranks][keep])
    return Tokens(*in_turn, keep.nonzero().squeeze(1), tokens.groups, found)


def group(lengths: list[int], limit: int, device: torch.device) -> list[Group]:
    """Return documents, sorted from the longest to the shortest, in groups.

    A group has at most `limit` tokens with its padding, unless it is one document.
    """
    found, begin, token = [], 0, 0
    while begin < len(lengths):
        longest = lengths[begin]
        part = lengths[begin : begin + max(1, limit // longest)]
        ends = torch.tensor([0, *itertools.accumulate(part)], dtype=torch.int32)
        rows = slice(token, token + sum(part))
        found.append(Group(rows, Documents(ends.to(device), longest)))
        begin, token = begin + len(part), rows.stop
    return found
