"""Make a dataset better by making it smaller: lengths, duplicates, an honest split."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import unicodedata
from array import array
from collections import Counter
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.data import Row, prompt_of
from colab_utils.readers import Rejected, reject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def token_lengths(rows: list[Row], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each row, formatted as in training."""
    lengths = []
    for start in runtime.progress(range(0, len(rows), 500), "counting tokens"):
        chats = [row["messages"] for row in rows[start : start + 500]]
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        # verbose=False: a row that is too long is what we are looking for.
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths += map(len, ids)
    return lengths


def drop_long(
    rows: list[Row], lengths: list[int], max_tokens: int
) -> tuple[list[Row], list[Rejected]]:
    """Split off the rows that are longer than `max_tokens`.

    Raises ValueError when no row is left.
    """
    kept, rejected = [], []
    for row, length in zip(rows, lengths, strict=True):
        if length <= max_tokens:
            kept.append(row)
        else:
            reason = f"too long: {length} tokens, the limit is {max_tokens}"
            rejected.append(reject(row["line"], reason, prompt_of(row)))
    if not kept:
        raise ValueError(
            f"No row is left: all {len(rows)} are longer than {max_tokens} tokens (the "
            f"shortest has {min(lengths, default=0)}). Raise MAX_TOKENS."
        )
    return kept, rejected


def normalised(text: str) -> str:
    """Lower case, words only (if any): "Hello,  World!" becomes "hello world"."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", text) or text.split())


def drop_exact(rows: list[Row]) -> list[Row]:
    """Keep the first of the rows that say the same, letter for letter."""
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(json.dumps(row["messages"], sort_keys=True), row)
    return list(seen.values())


def shingles(text: str) -> frozenset[str]:
    """Pairs of neighbouring words, the unit in which texts are compared.

    "to be or" becomes {"to be", "be or"}.
    """
    words = normalised(text).split() or [""]
    return frozenset(map(" ".join, itertools.pairwise(words))) or frozenset(words)


def near_duplicates(texts: list[str], threshold: float = 0.85) -> list[int]:
    """For each text, the index of the first text of its group (its own, if alone).

    Texts whose word pairs have a Jaccard similarity of `threshold` or more are in one
    group, and so are texts that a third one links. Exact, though few texts are
    compared: two that are so similar must share one of their few rarest word pairs
    (prefix filtering: Bayardo et al. 2007, Xiao et al. 2008).
    """
    import numpy as np

    if not 0 < threshold <= 1:
        raise ValueError(f"The threshold is {threshold}; it lies between 0 and 1.")
    number: dict[str, int] = {}
    sets = [
        frozenset(number.setdefault(pair, len(number)) for pair in shingles(text))
        for text in texts
    ]
    count = Counter(itertools.chain.from_iterable(set(sets)))
    # Short texts come first, so that a text meets none that is longer.
    parts = sorted(dict.fromkeys(sets), key=len)
    bits = np.empty((len(parts), 16), np.uint64)
    group = np.arange(len(parts))
    index: dict[int, array[int]] = {}  # the texts that have a pair among their rarest
    for i, part in enumerate(runtime.progress(parts, "comparing")):
        rare = sorted(part, key=lambda pair: (count[pair], pair))
        found = np.zeros(i, bool)
        for pair in rare[: _prefix(len(part), threshold)]:
            if pair in index:
                found[np.frombuffer(index[pair], np.int64)] = True
        near = np.flatnonzero(found)
        # Folded into 1,024 bits, sets differ by no more than they do themselves.
        folded = np.zeros(1024, bool)
        folded[[pair % 1024 for pair in part]] = True
        bits[i] = np.packbits(folded).view(np.uint64)
        differing = np.bitwise_count(bits[near] ^ bits[i]).sum(axis=1)
        most = 2 * len(part) * (1 - threshold) / (1 + threshold)
        near = near[differing <= most + 1e-9]
        while near.size:
            other = parts[near[0]]
            shared = len(part & other)
            if shared >= threshold * (len(part) + len(other) - shared):
                group[group == group[near[0]]] = group[i]
            near = near[1:][group[near[1:]] != group[i]]
        for pair in rare[: _prefix(len(part), 2 * threshold / (1 + threshold))]:
            if count[pair] > 1:
                index.setdefault(pair, array("q")).append(i)
    named = dict(zip(parts, group.tolist(), strict=True))
    first: dict[int, int] = {}
    return [first.setdefault(named[part], i) for i, part in enumerate(sets)]


def _prefix(size: int, share: float) -> int:
    """How many of `size` elements can't all be missing where `share` of them match."""
    return size - math.ceil(share * size - 1e-9) + 1


def split(
    rows: list[Row], test_share: float, seed: int, threshold: float = 0.85
) -> tuple[list[Row], list[Row]]:
    """Divide into train and test so that what belongs together stays on one side.

    Together belong rows with nearly the same prompt, and rows about the same country.
    Raises ValueError when one side would be empty.
    """
    import numpy as np

    prompts = [prompt_of(row) for row in rows]
    group = np.array(near_duplicates(prompts, threshold), int)
    about = np.array([row.get("country", "") for row in rows])
    for country in {*about.tolist()} - {""}:
        joined = group[about == country]
        group[np.isin(group, joined)] = joined.min()
    group = group.tolist()
    sizes = Counter(group)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    test_groups, taken = set(), 0
    for g in order:
        if taken + sizes[g] / 2 <= test_share * len(rows):
            test_groups.add(g)
            taken += sizes[g]
    test = [row for row, g in zip(rows, group, strict=True) if g in test_groups]
    train = [row for row, g in zip(rows, group, strict=True) if g not in test_groups]
    if not train or not test:
        raise ValueError(
            f"{len(rows)} rows can't be split with a test share of {test_share}: one "
            f"side would be empty. Rows with nearly the same prompt stay together, "
            f"which leaves {len(sizes)} groups. Add rows or change TEST_SHARE."
        )
    return train, test
