"""Make a dataset better by making it smaller: lengths, duplicates, an honest split."""

from __future__ import annotations

import itertools
import json
import random
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.data.dataset import Row, prompt_of
from colab_utils.data.readers import Rejected, reject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

SIMILAR = 0.85  # Jaccard similarity from which on two texts count as the same
# Of 256 numbers in a sketch, the 8 of one of 32 bands must agree for a comparison: at
# a similarity of 0.85 that fails in (1 - 0.85^8)^32 = 0.00004 of the cases.
SKETCH, BANDS = 256, 32


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


def set_aside(row: Row, reason: str) -> Rejected:
    """A row that is not used, with its line number and why."""
    return reject(row["line"], reason, prompt_of(row))


def drop_marked(
    rows: list[Row], tokenizer: Tokenizer
) -> tuple[list[Row], list[Rejected]]:
    """Split off the rows whose text holds a special token, such as `</s>`.

    The tokenizer would take it for the real end, and the model learn to stop there.
    """
    kept, rejected = [], []
    for row in rows:
        text = "".join(turn["content"] for turn in row["messages"])
        marks = [mark for mark in tokenizer.all_special_tokens if mark in text]
        if marks:
            rejected.append(set_aside(row, f"holds the mark {marks[0]}"))
        else:
            kept.append(row)
    return kept, rejected


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
            rejected.append(set_aside(row, reason))
    if not kept:
        raise ValueError(
            f"No row is left: all {len(rows)} are longer than {max_tokens} tokens (the "
            f"shortest has {min(lengths, default=0)}). Raise MAX_TOKENS."
        )
    return kept, rejected


def normalised(text: str) -> str:
    """Lower case, words only (if any): "Hello,  C++!" becomes "hello c++"."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+[+#]*", text) or text.split())


def drop_exact(rows: list[Row]) -> tuple[list[Row], list[Rejected]]:
    """Keep the first of the rows that say the same, letter for letter."""
    seen: dict[str, Row] = {}
    rejected = []
    for row in rows:
        first = seen.setdefault(json.dumps(row["messages"], sort_keys=True), row)
        if first is not row:
            rejected.append(set_aside(row, f"repeats line {first['line']}"))
    return list(seen.values()), rejected


def shingles(text: str) -> frozenset[str]:
    """Pairs of neighbouring words, the unit in which texts are compared.

    "to be or" becomes {"to be", "be or"}.
    """
    words = normalised(text).split() or [""]
    return frozenset(map(" ".join, itertools.pairwise(words))) or frozenset(words)


def near_duplicates(texts: list[str]) -> list[int]:
    """For each text, the index of the first text of its group (its own, if alone).

    Texts whose word pairs have a Jaccard similarity of `SIMILAR` or more are in one
    group, and so are texts that a third one links. MinHash (Broder 1997, here rensa's)
    finds what to compare; at that similarity it misses 4 pairs of 100,000.
    """
    from rensa import RMinHash, RMinHashLSH

    sets = list(map(shingles, texts))
    parts = list(dict.fromkeys(sets))
    index = RMinHashLSH(SIMILAR, SKETCH, BANDS)
    sketches, group = [], list(range(len(parts)))

    def first_of(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, part in enumerate(runtime.progress(parts, "comparing")):
        sketch = RMinHash(SKETCH, 0)
        sketch.update(sorted(part))
        for j in sorted(index.query(sketch)):
            one, other = first_of(i), first_of(j)
            # the sketches' estimate is within 0.1 of the truth, but for 1 in 100,000
            if one == other or sketch.jaccard(sketches[j]) < SIMILAR - 0.1:
                continue
            if len(part & parts[j]) >= SIMILAR * len(part | parts[j]):
                group[max(one, other)] = min(one, other)
        index.insert(i, sketch)
        sketches.append(sketch)
    named = {part: first_of(i) for i, part in enumerate(parts)}
    first: dict[int, int] = {}
    return [first.setdefault(named[part], i) for i, part in enumerate(sets)]


def split(rows: list[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide into train and test so that what belongs together stays on one side.

    Together belong rows with nearly the same prompt, and rows about the same country.
    Raises ValueError when one side would be empty.
    """
    import numpy as np

    if not rows:
        raise ValueError(
            "No row is left to split: the steps before have dropped all of them. Look "
            "at the reasons in `rejected`, and at MAX_ROWS."
        )
    prompts = [prompt_of(row) for row in rows]
    group = np.array(near_duplicates(prompts), int)
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
