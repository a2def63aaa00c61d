"""The split into training and test rows; related rows stay on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from colab_utils.data import schema
from colab_utils.data.repeats.dedup import first_repeats, question_of
from colab_utils.data.repeats.groups import DisjointSets
from colab_utils.data.schema import Row


def split(rows: list[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and test rows; related rows stay on one side.

    Rows are related if they have nearly the same prompt or the same `group`. If all
    prompts are the same, each row stands for itself. Raises ValueError when one side
    would be empty.
    """
    first = first_repeats([split_texts(row) for row in rows])
    sets = related(first, [row.get("group", "") for row in rows])
    is_test = choose(sets, test_share, seed)
    train = [row for row, test in zip(rows, is_test, strict=True) if not test]
    test = [row for row, test in zip(rows, is_test, strict=True) if test]
    return train, test


def split_texts(row: Row) -> tuple[str, str]:
    """Return the texts by which the split compares rows: the prompt, or raw text."""
    raw_text = schema.kind_of(row) == schema.COMPLETION
    return question_of(row), schema.answer_of(row) if raw_text else ""


def related(first: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Return for each row the index of the first row that it is related to.

    `first` is the index of the first row with nearly the same prompt.
    """
    sets = DisjointSets(len(first))
    same_prompt = len(first) > 1 and len(set(first)) == 1
    if same_prompt:
        print("split: all prompts are nearly the same, so rows are split one by one")
    else:
        for i, j in enumerate(first):
            sets.join(i, j)
    first_of: dict[str, int] = {}
    for i, group in enumerate(groups):
        if group:
            sets.join(i, first_of.setdefault(group, i))
    if first_of:
        print(f"split: {len(first_of):,} groups in the column `group` stay together")
    return sets.all()


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
        "be empty. Rows with nearly the same prompt or the same `group` stay together, "
        f"which leaves {len(sizes)} sets of {smallest} to {largest} rows. "
    )
    if len(sizes) == 1:
        return (
            f"{start}Add rows with other prompts. If all are of one group, remove the "
            "column `group`."
        )
    low, high = smallest / rows, 1 - smallest / rows
    return f"{start}Take a TEST_SHARE from {low:.4f} to {high:.4f}, or add rows."
