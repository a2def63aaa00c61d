"""Pairs of rows that repeat each other, and the groups that they form."""

from __future__ import annotations

from typing import NamedTuple

SIMILAR = 0.6  # the similarity from which a row repeats another


class Pair(NamedTuple):
    """Two rows that nearly repeat each other; `first` comes before `second`."""

    first: int
    second: int
    similarity: float


class DisjointSets:
    """Disjoint sets of the numbers 0 to count - 1; the smallest number names a set."""

    def __init__(self, count: int) -> None:
        """Put each number into a set of its own."""
        self._parents = list(range(count))

    def find(self, number: int) -> int:
        """Return the smallest number of the set that `number` is in."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]  # halves the path
            number = parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two numbers."""
        one, other = self.find(one), self.find(other)
        self._parents[max(one, other)] = min(one, other)

    def all(self) -> list[int]:
        """Return for each number the smallest number of its set."""
        parents = self._parents
        for number, parent in enumerate(parents):
            if parent != number:  # a smaller number, which has its set by now
                parents[number] = parents[parent]
        return [*parents]
