"""The split into training and test rows; related rows stay on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from colab_utils.data import schema
from colab_utils.data.repeats.dedup import first_repeats, question_of
from colab_utils.data.repeats.groups import DisjointSets
from colab_utils.data.schema import Row


def split(rows: list[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and test rows; related rows stay on one side.

    Rows are related if they have nearly the same prompt or the same `group`, if they
    are dialogues with the same beginning, or if they are middles of one text. If all
    prompts are the same, each row stands for itself. Raises ValueError when one side
    would be empty.
    """
    first = first_repeats([split_texts(row) for row in rows])
    sets = related(first, [labels_of(row) for row in rows])
    is_test = choose(sets, test_share, seed)
    train = [row for row, test in zip(rows, is_test, strict=True) if not test]
    test = [row for row, test in zip(rows, is_test, strict=True) if test]
    return train, test


def split_texts(row: Row) -> tuple[str, str]:
    """Return the texts by which the split compares rows: the prompt, or raw text."""
    raw_text = schema.kind_of(row) == schema.COMPLETION
    return question_of(row), schema.answer_of(row) if raw_text else ""


def labels_of(row: Row) -> tuple[str, ...]:
    """Return the row's group, and names for the texts that it may share with others.

    These are the beginnings of a dialogue up to each answer, and the whole text of
    which a row has the middle.
    """
    kind, shared = schema.kind_of(row), []
    if kind == schema.MIDDLE:
        shared = [[row["prefix"] + row["middle"] + row["suffix"]]]
    elif kind in (schema.INSTRUCTION, schema.PREFERENCE):
        turns = row["messages"] if kind == schema.INSTRUCTION else row["prompt"]
        texts = [f"{turn['role']}: {schema.said(turn)}" for turn in turns]
        ends = (i for i, turn in enumerate(turns, 1) if turn["role"] == "assistant")
        shared = [texts[:end] for end in ends]
        if kind == schema.PREFERENCE:
            answers = (row["chosen"][:1], row["rejected"][:1])
            said = [[f"assistant: {schema.said(turn)}" for turn in a] for a in answers]
            shared += [texts + answer for answer in said]
    return row.get("group", ""), *map(_name, shared)


def _name(texts: list[str]) -> str:
    content = "\0".join(" ".join(text.split()) for text in texts)
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def related(first: Sequence[int], labels: Sequence[tuple[str, ...]]) -> list[int]:
    """Return for each row the index of the first row that it is related to.

    `first` is the index of the first row with nearly the same prompt, and `labels` are
    what `labels_of` returns. A text that more than half of the rows share, such as
    examples before each question, relates no rows.
    """
    sets = DisjointSets(len(first))
    same_prompt = len(first) > 1 and len(set(first)) == 1
    if same_prompt:
        print("split: all prompts are nearly the same, so rows are split one by one")
    else:
        for i, j in enumerate(first):
            sets.join(i, j)
    groups: dict[str, int] = {}
    texts: dict[str, int] = {}
    rows = Counter(name for _, *names in labels for name in names)
    for i, (group, *names) in enumerate(labels):
        if group:
            sets.join(i, groups.setdefault(group, i))
        for name in names:
            if 2 * rows[name] <= len(labels):
                sets.join(i, texts.setdefault(name, i))
    if groups:
        print(f"split: {len(groups):,} groups in the column `group` stay together")
    if shared := sum(count > 1 for name, count in rows.items() if name in texts):
        print(f"split: rows that share one of {shared:,} texts stay together")
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
        return f"{start}Add rows, or remove the column `group`."
    low, high = smallest / rows, 1 - smallest / rows
    return f"{start}Take a TEST_SHARE from {low:.4f} to {high:.4f}, or add rows."
