"""The split into training and test rows; related rows stay on one side."""

from __future__ import annotations

import random
from collections import Counter

from colab_utils.data.dedup import DisjointSets, near_duplicates
from colab_utils.data.schema import Row


def split(rows: list[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and test rows; related rows stay on one side.

    Rows are related if their prompts are near-duplicates or if they have the same
    `group`. Raises ValueError when one side would be empty.
    """
    if not rows:
        raise ValueError(
            "No row is left to split: the steps before have dropped all of them. Look "
            "at the reasons in `rejected`, and at MAX_ROWS."
        )
    related = _related(rows)
    sizes = Counter(related)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    test_sets, taken = set(), 0
    for number in order:
        if taken + sizes[number] / 2 <= test_share * len(rows):
            test_sets.add(number)
            taken += sizes[number]
    train = [row for row, n in zip(rows, related, strict=True) if n not in test_sets]
    test = [row for row, n in zip(rows, related, strict=True) if n in test_sets]
    if not train or not test:
        raise ValueError(
            f"{len(rows)} rows can't be split with a test share of {test_share}: one "
            "side would be empty. Rows with nearly the same prompt or the same `group` "
            f"stay together, which leaves {len(sizes)} sets of rows. Add rows, change "
            "TEST_SHARE, or remove the column `group`."
        )
    return train, test


def _related(rows: list[Row]) -> list[int]:
    """Return for each row the index of the first row that it is related to."""
    sets = DisjointSets(len(rows))
    for i, first in enumerate(near_duplicates(rows)):
        sets.join(i, first)
    first_of: dict[str, int] = {}
    for i, row in enumerate(rows):
        if group := row.get("group"):
            sets.join(i, first_of.setdefault(group, i))
    if first_of:
        print(f"split: {len(first_of):,} groups in the column `group` stay together")
    return [sets.find(i) for i in range(len(rows))]
