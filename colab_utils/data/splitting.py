"""The split into training and test rows; related rows stay on one side."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from colab_utils.data import schema
from colab_utils.data.repeats.dedup import first_repeats, question_of
from colab_utils.data.repeats.groups import DisjointSets
from colab_utils.data.schema import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPACES = bytes(code for code in range(128) if chr(code).isspace())


def split(rows: list[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and test rows; related rows stay on one side.

    Rows are related if they have nearly the same prompt or the same `group`, if they
    are dialogues with the same beginning, or if they are middles of one text. If all
    prompts are the same, each row stands for itself. Raises ValueError when one side
    would be empty.
    """
    first = first_repeats([split_texts(row) for row in rows])
    groups = [row.get("group", "") for row in rows]
    sets = related(first, groups, shared_texts(rows))
    is_test = choose(sets, test_share, seed)
    train = [row for row, test in zip(rows, is_test, strict=True) if not test]
    test = [row for row, test in zip(rows, is_test, strict=True) if test]
    return train, test


def split_texts(row: Row) -> tuple[str, str]:
    """Return the texts by which the split compares rows: the prompt, or raw text."""
    raw_text = schema.kind_of(row) == schema.COMPLETION
    return question_of(row), schema.answer_of(row) if raw_text else ""


def shared_texts(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """Return the texts that rows may share: place of the row, hash, whole or not.

    These are the beginnings of a dialogue up to each answer, and the whole text of
    which a row has the middle.
    """
    import numpy as np

    keys = [_keys(row) for row in rows]
    counts = np.array([*map(len, keys)], np.int64)
    found = np.zeros((counts.sum(), 3), np.uint64)
    found[:, 0] = np.repeat(np.arange(len(keys)), counts)
    found[:, 1] = np.frombuffer(b"".join(itertools.chain.from_iterable(keys)), ">u8")
    found[np.cumsum(counts)[counts > 0] - 1, 2] = 1
    return found


def _keys(row: Row) -> list[bytes]:
    """Return hashes of the texts of a row that others may share; the last is the whole.

    Spaces do not count.
    """
    kind, begun = schema.kind_of(row), xxhash.xxh3_64()
    if kind == schema.MIDDLE:
        begun.update(_dense(row["prefix"] + row["middle"] + row["suffix"]))
        return [begun.digest()]
    if kind not in (schema.INSTRUCTION, schema.PREFERENCE):
        return []
    keys, text = [], ""
    for turn in row["messages"] if kind == schema.INSTRUCTION else row["prompt"]:
        text += f"{turn['role']}: {schema.said(turn)}"
        if turn["role"] == "assistant":
            begun.update(_dense(text))
            keys.append(begun.digest())
            text = ""
    if kind == schema.PREFERENCE:
        begun.update(_dense(text))
        for answer in (row["rejected"][-1], row["chosen"][-1]):
            whole = begun.copy()
            whole.update(_dense(f"assistant: {schema.said(answer)}"))
            keys.append(whole.digest())
    return keys


def _dense(text: str) -> bytes:
    """Return a text without its spaces."""
    if text.isascii():
        return text.encode().translate(None, SPACES)
    return "".join(text.split()).encode("utf-8", "surrogatepass")


def related(
    first: Sequence[int],
    groups: Sequence[str] = (),
    shared: NDArray[np.uint64] | None = None,
) -> list[int]:
    """Return for each row the index of the first row that it is related to.

    `first` is the index of the first row with nearly the same prompt, and `shared` is
    what `shared_texts` returns.
    """
    sets = DisjointSets(len(first))
    same_prompt = len(first) > 1 and len(set(first)) == 1
    if same_prompt:
        print("split: all prompts are nearly the same, so rows are split one by one")
    else:
        for i, j in enumerate(first):
            if i != j:
                sets.join(i, j)
    first_of: dict[str, int] = {}
    for i, group in enumerate(groups):
        if group:
            sets.join(i, first_of.setdefault(group, i))
    if first_of:
        print(f"split: {len(first_of):,} groups in the column `group` stay together")
    if shared is not None and len(shared):
        _join_shared(sets, shared, len(first))
    return sets.all()


def _join_shared(sets: DisjointSets, shared: NDArray[np.uint64], rows: int) -> None:
    """Join the rows with a beginning or a whole text in common.

    A beginning that more than half of the rows have, such as examples before each
    question, joins no rows, unless it is all of a row.
    """
    import numpy as np

    shared = shared[np.lexsort((shared[:, 0], shared[:, 1]))]
    starts = np.flatnonzero(np.diff(shared[:, 1], prepend=~shared[:1, 1]))
    counts = np.diff(starts, append=len(shared))
    whole = np.maximum.reduceat(shared[:, 2], starts) > 0
    joined = 0
    for i in np.flatnonzero((counts > 1) & (whole | (2 * counts <= rows))):
        places = shared[starts[i] : starts[i] + counts[i], 0].tolist()
        joined += len(set(places)) > 1
        for place in places[1:]:
            sets.join(places[0], place)
    if joined:
        print(
            f"split: {joined:,} texts that rows share (the beginning of a dialogue, or "
            "the text around a middle) keep these rows together"
        )


def choose(related: Sequence[int], test_share: float, seed: int) -> list[bool]:
    """Return for each row whether it is a test row.

    Raises ValueError when one side would be empty.
    """
    if not related:
        raise ValueError(
            "No row is left to split: the steps before have dropped all of them. Look "
            "at the reasons in `rejected`, and at MAX_ROWS."
        )
    sizes = Counter(related)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    test_sets, taken = set(), 0
    for number in order:
        if taken + sizes[number] / 2 <= test_share * len(related):
            test_sets.add(number)
            taken += sizes[number]
    if not 0 < taken < len(related):
        raise ValueError(_advice(sizes, len(related), test_share))
    return [number in test_sets for number in related]


def _advice(sizes: Counter[int], rows: int, test_share: float) -> str:
    smallest, largest = min(sizes.values()), max(sizes.values())
    start = (
        f"{rows} rows can't be split with a test share of {test_share}: one side would "
        "be empty. Rows with nearly the same prompt, the same `group` or the same text "
        f"stay together, which leaves {len(sizes)} sets of {smallest} to {largest} "
        "rows. "
    )
    if len(sizes) == 1:
        return (
            f"{start}Add rows with other prompts. If all are of one group, remove the "
            "column `group`."
        )
    low, high = smallest / rows, 1 - (largest + 1) / (2 * rows)
    return f"{start}Take a TEST_SHARE from {low:.4f} to {high:.4f}, or add rows."
