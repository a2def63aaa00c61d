"""Models with more tokens than their base: new rows of embeddings and head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from colab_utils.weights.shards import tensors_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BLOCK = 4096  # rows that are added up at a time


def grown(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Return embeddings or a head with `rows` rows; the new ones are the mean row.

    A token whose row of the head is the mean has the mean of all logits. So greedy
    decoding never takes it.
    """
    import torch

    total = torch.zeros(table.shape[1], dtype=torch.float64)
    for part in table.detach().split(BLOCK):
        total += part.cpu().double().sum(0)
    mean = (total / len(table)).to(table)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def resize(model: PreTrainedModel, rows: int) -> None:
    """Give a model's embeddings and head `rows` rows; new ones are those of `grown`.

    transformers draws new rows at random, so a model that is loaded again would get
    others.
    """
    import torch

    old = embeddings(model)
    if rows == old:
        return
    means = [grown(table, old + 1)[-1] for table in _tables(model)]
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        # The head of a tied model is its embeddings, so both means are equal.
        for mean, table in zip(means, _tables(model), strict=True):
            table[old:] = mean


def embeddings(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's embeddings."""
    return len(_tables(model)[0])


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the weights of a model's embeddings and head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [cast("torch.Tensor", end.weight) for end in ends]


def fit(model: PreTrainedModel, adapter: Path) -> None:
    """Give a base as many embeddings as an adapter was trained with."""
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    given = config.get("trainable_token_indices") or []
    lists = given.values() if isinstance(given, dict) else [given]
    rows = [1 + max(ids) for ids in lists if ids]
    for name, entry in tensors_of(adapter / "adapter_model.safetensors"):
        if ".embed_tokens." in name and name.endswith(".weight"):  # saved as a whole
            resize(model, entry["shape"][0])
            return
    resize(model, max([*rows, embeddings(model)]))
