"""Check that an adapter fits its base, also one with another number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.weights.adapters import EMBEDDINGS, HEAD, Adapter, Update, parse
from colab_utils.weights.shards import DTYPES, Entry, all_entries, tensors_of
from colab_utils.weights.vocabulary import grown

if TYPE_CHECKING:
    import torch


def read_for_base(
    folder: Path, shards: list[Path]
) -> tuple[dict[str, Update], dict[str, torch.Tensor]]:
    """Return what `read_adapter` returns, checked against the files of the base.

    An adapter with another number of tokens replaces the embeddings and the head. Of a
    tied base only the embeddings are replaced. Raises the errors of `read_adapter`, and
    ValueError when the adapter does not fit the base.
    """
    found, stored = parse(folder), all_entries(shards)
    updates, replaced = found.updates, dict(found.replaced)
    for name, copy in found.copies.items():  # of the base before LoRA, but resized
        if name in stored and len(copy) != stored[name]["shape"][0]:
            replaced[name] = copy
    replaced |= _with_rows(found, shards, replaced)
    if _equally_tied(stored, replaced):
        del replaced[HEAD]
    elif set(found.rows) != {EMBEDDINGS} or HEAD in replaced:
        _check_tied(stored, {*updates, *replaced})
    _check_fit(stored, updates, replaced)
    return updates, replaced


def _with_rows(
    found: Adapter, shards: list[Path], replaced: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tables whose rows the adapter trains, with these rows.

    With tokens that the base lacks, both tables have more rows. A new row that is not
    trained is the mean of the base's, as in `vocabulary.resize`.
    """
    if not found.rows:
        return {}
    tables: dict[str, torch.Tensor] = {}
    for shard in shards:
        names = {EMBEDDINGS, HEAD, *found.rows} & {
            name for name, _ in tensors_of(shard)
        }
        tables |= {name: _read_table(shard, name) for name in names}
    tables |= {n: table for n, table in replaced.items() if n in (EMBEDDINGS, HEAD)}
    if HEAD in found.rows and EMBEDDINGS in tables:
        tables.setdefault(HEAD, tables[EMBEDDINGS])  # the base is tied
    count = max(1 + max(rows.ids) for rows in found.rows.values())
    count = max([count, *map(len, tables.values())])
    made = {}
    for name, table in tables.items():
        if name in found.rows or len(table) < count:
            made[name] = table = grown(table, count)
        if rows := found.rows.get(name):
            table[rows.ids] = rows.values.to(table)
    return made | {n: rows.values for n, rows in found.rows.items() if n not in tables}


def _read_table(shard: Path, name: str) -> torch.Tensor:
    """Return a weight in a dtype that also holds its trained rows exactly enough.

    A weight in bfloat16 may be written as float16, which has more digits.
    """
    import torch
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        table: torch.Tensor = file.get_tensor(name)
    return table.float() if table.dtype == torch.bfloat16 else table


def _equally_tied(stored: dict[str, Entry], replaced: dict[str, torch.Tensor]) -> bool:
    """Return whether a tied base gets the same new weight as embeddings and as head."""
    import torch

    tied = len({EMBEDDINGS, HEAD} & set(stored)) == 1 and EMBEDDINGS in stored
    both = EMBEDDINGS in replaced and HEAD in replaced
    return tied and both and torch.equal(replaced[EMBEDDINGS], replaced[HEAD])


def _check_tied(stored: dict[str, Entry], adapted: set[str]) -> None:
    changed = {EMBEDDINGS, HEAD} & adapted
    if changed and len({EMBEDDINGS, HEAD} & set(stored)) == 1:
        raise ValueError(
            "The base's head is its embeddings (they are tied), and this adapter has "
            f"changed {' and '.join(sorted(changed))}: the merged model would compute "
            "other logits. Train without these layers, or on an untied base."
        )


def _check_fit(
    stored: dict[str, Entry],
    updates: dict[str, Update],
    replaced: dict[str, torch.Tensor],
) -> None:
    """Raise ValueError unless the base holds every adapted weight in the same shape."""
    if missing := sorted({*updates, *replaced} - set(stored)):
        raise ValueError(
            f"{len(missing)} adapted weights are not in the base model (the first is "
            f"{missing[0]}): was the adapter trained on this base?"
        )
    base = {name: tuple(entry["shape"]) for name, entry in stored.items()}
    for name, tensor in replaced.items():
        _check_weight(name, stored[name]["dtype"], base[name], tuple(tensor.shape))
        base[name] = tuple(tensor.shape)
    for name, update in updates.items():
        shape = (len(update.b), update.a.shape[1])
        _check_weight(name, stored[name]["dtype"], base[name], shape, resized=False)
    sizes = {name: base[name][0] for name in (EMBEDDINGS, HEAD) if name in base}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"The merged model would have {sizes[EMBEDDINGS]:,} tokens in its "
            f"embeddings and {sizes[HEAD]:,} in its head: train again with "
            'modules_to_save=["embed_tokens", "lm_head"], so that both are saved.'
        )


def _check_weight(
    name: str,
    dtype: str,
    in_base: tuple[int, ...],
    shape: tuple[int, ...],
    resized: bool = True,
) -> None:
    """Raise ValueError unless a weight of `shape` can change one of the base.

    Embeddings and head may have another number of rows if they are `resized`.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"{name} is stored as {dtype} in the base: merge into the base's "
            "float16 or bfloat16 weights, not into quantized ones."
        )
    if resized and name in (EMBEDDINGS, HEAD):
        in_base, shape = in_base[1:], shape[1:]
    if in_base != shape:
        raise ValueError(
            f"{name} is {in_base} in the base, but {shape} in the adapter: was the "
            "adapter trained on this base?"
        )
