"""Log-probabilities of the tokens of answers, on the fast path if it is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from colab_utils.fast import patch

SAVED = 20  # a prompt is computed once if that saves one of so many tokens


def pad(
    rows: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return rows of token ids as a batch (rows, tokens), padded on the right.

    A label is the token where its mask is 1, and -100 elsewhere.
    """
    ids = [torch.tensor(row) for row in rows]
    asked = [torch.tensor(mask).bool() for mask in masks]
    labels = [i.where(mask, -100) for i, mask in zip(ids, asked, strict=True)]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def share(
    batch: dict[str, torch.Tensor], owners: Sequence[int], copies: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the batch with `shared`, if the fast path saves enough with it.

    The first `copies[i]` tokens of row i are those of the row `owners[i]`. See
    `documents.share`.
    """
    # Attention expands the copies again, so a few would cost more than they save.
    if SAVED * sum(copies) < batch["attention_mask"].sum():
        return batch
    found = torch.tensor([owners, copies], device=batch["input_ids"].device)
    return batch | {"shared": found.T}


def token_log_probs(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return the log-probability of each label of a batch of `pad`.

    The result is (rows, tokens - 1): place t holds that of token t + 1; 0 without a
    label. The model must be in training mode for the fast path; otherwise logits are
    computed.
    """
    labels, mask = batch["labels"], batch["attention_mask"].bool()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "shared" in batch and patch.is_fast(model):
        inputs["shared"] = batch["shared"]
    out = model(**inputs, labels=labels, num_items_in_batch=1)
    if (losses := getattr(out, "token_losses", None)) is None:
        logits, wanted = out.logits[:, :-1].float(), labels[:, 1:]
        return -F.cross_entropy(logits.mT, wanted, reduction="none")
    table = losses.new_zeros(mask.shape)
    return -table.masked_scatter(mask, losses)[:, :-1]
