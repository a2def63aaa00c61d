"""Log-likelihoods: how probable a model finds each continuation of a context.

The requests of a benchmark begin alike: four choices follow one question, and all
questions follow the same examples. Here the tokens of many requests form a tree, in
which a common beginning stands once, and the model reads the tree as one row. A token's
position is its depth, and it attends to its ancestors only (tree attention; Miao et al.
2023, "SpecInfer"). So each result is that of the request alone.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from colab_utils import models, runtime
from colab_utils.data.tokens.spans import shared

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

# Tokens of a row. On a GPU a row should keep the matrix products busy. On a CPU the
# attention costs more: its time grows with the square of the row.
ROW, CPU_ROW = 2048, 512
# What all requests share is read once a row. So a row has three times as many tokens,
# at most LONGEST: for a model of the width 4,096, that is the fastest within 10 %.
TIMES, LONGEST = 3, 8192
LOGITS = 2**26  # numbers that are converted to float32 at once: 0.25 GiB
KINDS = {"full_attention", "sliding_attention"}

Request = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether it is the top-1.

    It is `greedy` if greedy decoding writes this continuation.
    """

    total: float
    greedy: bool


def log_likelihoods(
    model: PreTrainedModel, requests: Sequence[Request], room: int | None = None
) -> list[Likelihood]:
    """Return the likelihood of each continuation; a request is (context, continuation).

    Both are token ids. What is longer than the model's context loses its first tokens.
    A row has at most `room` tokens, or one request; by default it is chosen. Raises
    ValueError for a context or a continuation without tokens.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    whole = [_whole(i, request, longest) for i, request in enumerate(requests)]
    if not reads_trees(model):
        print(
            f"{model.config.model_type}: its layers cannot read a tree of tokens, so "
            "each request is read alone"
        )
        room = 0
    if room is None:
        row = ROW if runtime.detect().device == "cuda" else CPU_ROW
        room = max(row, min(TIMES * _median_shared(whole), LONGEST))
    rows = _rows(whole, room)
    found: list[Likelihood | None] = [None] * len(requests)
    with models.in_mode(model, training=False):
        for tree, members in runtime.progress(rows, "reading requests"):
            paths = [tree.paths[number] for number in members]
            wanted = [whole[number] for number in members]
            some = _read(model, tree, paths, wanted)
            for number, likelihood in zip(members, some, strict=True):
                found[number] = likelihood
    return [one for one in found if one is not None]


def reads_trees(model: PreTrainedModel) -> bool:
    """Return whether a token of the model sees only what the attention mask allows.

    Not so for recurrent layers and for positions that are counted from the mask.
    """
    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "peft_config") else whole
    kinds = set(getattr(inner.config, "layer_types", None) or KINDS)
    positions = "position_ids" in inspect.signature(inner.forward).parameters
    return positions and kinds <= KINDS and not inner._is_stateful


class _Whole(NamedTuple):
    """The tokens that the model reads for a request, and those that it should write."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...]


def _whole(i: int, request: Request, longest: int | None) -> _Whole:
    context, continuation = map(tuple, request)
    if not context or not continuation:
        what = "continuation" if context else "context"
        raise ValueError(
            f"Request {i + 1} has no token in its {what}: put the BOS token before a "
            "text without a context, and leave out empty continuations."
        )
    # No token follows the last one.
    ids = (*context, *continuation)[:-1]
    if longest is not None and len(ids) > longest:
        ids, continuation = ids[-longest:], continuation[-longest:]
    return _Whole(ids, continuation)


def _median_shared(whole: Sequence[_Whole]) -> int:
    """Return how many tokens two contexts have in common at their beginning.

    It is the median of neighbors in alphabetical order.
    """
    contexts = sorted({w.ids[: len(w.ids) + 1 - len(w.wanted)] for w in whole})
    counts = sorted(shared(*pair) for pair in itertools.pairwise(contexts))
    return counts[len(counts) // 2] if counts else 0


class _Tree:
    """The tokens of requests, in which a common beginning stands once."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.paths: dict[int, list[int]] = {}  # of each request: its tokens' places
        self._children: dict[tuple[int, int], int] = {}

    def added(self, ids: Sequence[int]) -> int:
        """Return how many tokens a request would add."""
        parent = -1
        for depth, token in enumerate(ids):
            found = self._children.get((parent, token))
            if found is None:
                return len(ids) - depth
            parent = found
        return 0

    def add(self, number: int, ids: Sequence[int]) -> None:
        """Add the tokens of a request."""
        parent, path = -1, []
        for depth, token in enumerate(ids):
            place = self._children.setdefault((parent, token), len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(place)
            parent = place
        self.paths[number] = path

    def mask(self) -> NDArray[np.bool_]:
        """Return whether token i attends to token j: itself and its ancestors."""
        import numpy as np

        found = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                found[i] = found[parent]
            found[i, i] = True
        return found


def _rows(whole: Sequence[_Whole], room: int) -> list[tuple[_Tree, list[int]]]:
    """Return trees of at most `room` tokens, or of one request, with their requests.

    Requests with the same beginning are neighbors, so they come into the same tree.
    """
    rows: list[tuple[_Tree, list[int]]] = []
    for number in sorted(range(len(whole)), key=lambda i: whole[i].ids):
        ids = whole[number].ids
        if not rows or len(rows[-1][0].ids) + rows[-1][0].added(ids) > room:
            rows.append((_Tree(), []))
        rows[-1][0].add(number, ids)
        rows[-1][1].append(number)
    return rows


def _read(
    model: PreTrainedModel,
    tree: _Tree,
    paths: Sequence[Sequence[int]],
    wanted: Sequence[_Whole],
) -> list[Likelihood]:
    """Return the likelihoods of a tree's requests, from one forward pass."""
    import torch

    # The token before a wanted token predicts it.
    ends = [path[-len(w.wanted) :] for path, w in zip(paths, wanted, strict=True)]
    places = sorted({place for end in ends for place in end})
    column = {place: i for i, place in enumerate(places)}
    rows = torch.tensor([column[place] for end in ends for place in end])
    tokens = torch.tensor([token for w in wanted for token in w.wanted])
    logits = _logits(model, tree, places)
    lps, top_1 = [], []
    step = max(1, LOGITS // logits.shape[-1])
    for start in range(0, len(rows), step):
        some = logits[rows[start : start + step].to(logits.device)].float()
        next_tokens = tokens[start : start + step, None].to(logits.device)
        lps.append(some.log_softmax(-1).gather(1, next_tokens)[:, 0].cpu())
        top_1.append((some.argmax(-1) == next_tokens[:, 0]).cpu())
    counts = [len(end) for end in ends]
    totals = torch.cat(lps).double().split(counts)
    greedy = torch.cat(top_1).split(counts)
    return [
        Likelihood(total.sum().item(), bool(same.all()))
        for total, same in zip(totals, greedy, strict=True)
    ]


def _logits(model: PreTrainedModel, tree: _Tree, places: list[int]) -> torch.Tensor:
    """Return the logits (places, vocabulary) of a tree's tokens at these places."""
    import torch

    device = model.device
    depths = torch.tensor(tree.depths, device=device)
    given: dict[str, Any] = {}
    # Each request of a row of its own has the usual mask, which the model makes itself.
    if len(tree.paths) > 1:
        given["attention_mask"] = _masks(model, tree, depths)
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor([tree.ids], device=device),
            position_ids=depths[None],
            use_cache=False,
            logits_to_keep=torch.tensor(places, device=device),
            **given,
        )
    logits: torch.Tensor = out.logits[0]
    return logits


def _masks(model: PreTrainedModel, tree: _Tree, depths: torch.Tensor) -> Any:
    """Return the mask (1, 1, T, T) that attention adds, or one for each kind of layer.

    It is 0 where a token attends to another, and the smallest number elsewhere.
    """
    import torch

    def added(seen: torch.Tensor) -> torch.Tensor:
        blank = torch.zeros_like(seen, dtype=model.dtype)
        return blank.masked_fill_(~seen, torch.finfo(model.dtype).min)[None, None]

    full = torch.from_numpy(tree.mask()).to(depths.device)
    window = getattr(model.config, "sliding_window", None)
    if window is None:
        return added(full)
    sliding = added(full & (depths[:, None] - depths < window))
    if getattr(model.config, "layer_types", None) is None:
        return sliding
    return {"full_attention": added(full), "sliding_attention": sliding}
