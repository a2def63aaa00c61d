"""Duplicates: rows with the same messages, and texts that are nearly the same."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from typing import Any

from colab_utils import runtime
from colab_utils.data.schema import Rejected, Row, reject_row

SIMILAR = 0.85  # the Jaccard similarity from which two texts are near-duplicates
# A sketch has 256 numbers in 32 bands of 8. Two texts are compared if a band is equal.
# At a similarity of 0.85, (1 - 0.85^8)^32 = 0.00004 of the pairs have no equal band.
SKETCH, BANDS = 256, 32


def normalize(text: str) -> str:
    """Return the words in lower case: "Hello,  C++!" becomes "hello c++".

    A text without words keeps its other characters.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+[+#]*", text) or text.split())


def drop_exact(rows: list[Row]) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those with new messages and those that repeat an earlier row."""
    seen: dict[str, Row] = {}
    rejected = []
    for row in rows:
        first = seen.setdefault(json.dumps(row["messages"], sort_keys=True), row)
        if first is not row:
            rejected.append(reject_row(row, f"repeats line {first['line']}"))
    return list(seen.values()), rejected


def shingles(text: str) -> frozenset[str]:
    """Return the pairs of neighboring words, by which texts are compared.

    "to be or" becomes {"to be", "be or"}.
    """
    words = normalize(text).split() or [""]
    return frozenset(map(" ".join, itertools.pairwise(words))) or frozenset(words)


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


def near_duplicates(texts: list[str]) -> list[int]:
    """Return for each text the index of the first text in its group of near-duplicates.

    A text without near-duplicates gets its own index. Two texts are in one group if
    their word pairs have a Jaccard similarity of `SIMILAR` or more, or if a third text
    links them. MinHash (Broder 1997, implemented by rensa) finds the pairs to compare;
    at a similarity of 0.85 it misses 4 of 100,000.
    """
    from rensa import RMinHash, RMinHashLSH

    shingled = list(map(shingles, texts))
    distinct = list(dict.fromkeys(shingled))
    groups = DisjointSets(len(distinct))
    index = RMinHashLSH(SIMILAR, SKETCH, BANDS)
    sketches: list[Any] = []  # rensa has no types
    for i, pairs in enumerate(runtime.progress(distinct, "comparing")):
        sketch = RMinHash(SKETCH, 0)
        sketch.update(sorted(pairs))
        for j in sorted(index.query(sketch)):
            if groups.find(i) == groups.find(j):
                continue
            # The sketches' estimate saves most exact comparisons. It is within 0.1 of
            # the exact similarity except for 1 pair in 100,000.
            if sketch.jaccard(sketches[j]) < SIMILAR - 0.1:
                continue
            if len(pairs & distinct[j]) >= SIMILAR * len(pairs | distinct[j]):
                groups.join(i, j)
        index.insert(i, sketch)
        sketches.append(sketch)
    group_of = {pairs: groups.find(i) for i, pairs in enumerate(distinct)}
    first: dict[int, int] = {}
    return [first.setdefault(group_of[pairs], i) for i, pairs in enumerate(shingled)]
