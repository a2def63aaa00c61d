"""Repeats among many rows, which come in batches and are not kept in memory."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colab_utils import runtime
from colab_utils.data.repeats import candidates
from colab_utils.data.repeats.comparing import Comparer, Verdict
from colab_utils.data.repeats.fingerprints import (
    Fingerprints,
    fingerprint,
    join,
    pieces,
)
from colab_utils.data.repeats.groups import SIMILAR, DisjointSets, Pair
from colab_utils.data.repeats.hashes import keep_freed_memory, word_hash

LOWEST = 0.3  # pairs below it are not kept
PAIRS = 500  # pairs that are compared at once
POLITE = 2  # rows that differ from another only in a sentence, if it is politeness

Texts = tuple[str, str]  # a prompt and an answer
Fetch = Callable[[list[int]], list[Any]]
Job = tuple[list[Any], list[list[int]]]  # items, and the places of each pair in them
Run = Callable[[candidates.Words, Iterable[Job]], Iterator[list[Verdict]]]


def compare(
    table: candidates.Words, texts: list[Texts], pairs: list[list[int]]
) -> list[Verdict]:
    """Compare pairs of texts; `table` counts the rows that have a word."""
    with _without_garbage_collection():
        return _compare(table, texts, pairs)


def _compare(
    table: candidates.Words, texts: list[Texts], pairs: list[list[int]]
) -> list[Verdict]:
    @functools.cache
    def count(word: str) -> int:
        return int(table[word_hash(word) & (candidates.TABLE - 1)])

    comparer = Comparer(count)
    return [comparer.compare(texts[i], texts[j]) for i, j in pairs]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Do not search for cycles among objects, which here takes a tenth of the time.

    A comparison makes many small objects, and none of them is in a cycle. They must be
    gone at the end of the block: the search that follows looks at all that are left.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _run_here(table: candidates.Words, jobs: Iterable[Job]) -> Iterator[list[Verdict]]:
    return (compare(table, *job) for job in jobs)


class Repeats:
    """Finds repeats among rows that are added in batches; it keeps no texts."""

    def __init__(self) -> None:
        """Start without rows."""
        keep_freed_memory()
        self._table = candidates.empty_table()
        self._exact: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._letters: list[NDArray[np.uint8]] = [np.empty((0, 16), np.uint8)]
        self._digits: list[candidates.Words] = [np.empty(0, np.uint32)]
        self._totals: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._sizes: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        self._words: list[candidates.Words] = [np.empty(0, np.uint32)]
        self._waiting: list[Fingerprints] = []
        self._waiting_rows = 0

    def add(self, batch: list[Texts]) -> None:
        """Add rows, given as their prompts and answers."""
        for prints in map(fingerprint, pieces(batch)):
            self.add_prints(prints)

    def add_prints(self, prints: Fingerprints) -> None:
        """Add rows, given as their fingerprints, which another process may compute."""
        self._waiting.append(prints)
        self._waiting_rows += len(prints.exact)
        while self._waiting_rows >= candidates.CHUNK:
            self._keep(candidates.CHUNK)

    def _keep(self, rows: int) -> None:
        """Count the words of the rows that wait, and keep their rarest words.

        The number of rows does not depend on how they were added, and so neither do
        the words that are kept.
        """
        new, rest = join(self._waiting).split(rows)
        self._waiting, self._waiting_rows = [rest], len(rest.exact)
        candidates.count_words(self._table, new.words)
        words, sizes = candidates.keep_rarest(new.words, new.sizes, self._table)
        self._exact.append(new.exact)
        self._letters.append(new.letters)
        self._digits.append(new.digits)
        self._totals.append(new.totals)
        self._sizes.append(sizes)
        self._words.append(words)

    def first(self, fetch: Fetch, run: Run | None = None) -> NDArray[np.int64]:
        """Return for each row the index of the first row that it repeats, or its own.

        `fetch` returns the prompts and answers of the rows with the given indices.
        With `run`, it may return other items, which `run` turns into texts.
        """
        sets = DisjointSets(sum(map(len, self._exact)) + self._waiting_rows)
        for pair in self.pairs(fetch, run):
            if pair.similarity >= SIMILAR:
                sets.join(pair.first, pair.second)
        return np.array(sets.all(), np.int64)

    def pairs(self, fetch: Fetch, run: Run | None = None) -> Iterator[Pair]:
        """Yield the pairs of rows that nearly repeat each other; see `first`."""
        if self._waiting:
            self._keep(self._waiting_rows)
        exact = np.concatenate(self._exact)
        _, first, group = np.unique(exact, return_index=True, return_inverse=True)
        for i in np.flatnonzero(first[group] != np.arange(len(exact))):
            yield Pair(int(first[group[i]]), int(i), 1.0)
        yield from self._near(np.sort(first), fetch, run or _run_here)

    def _near(
        self, different: candidates.Indices, fetch: Fetch, run: Run
    ) -> Iterator[Pair]:
        """Yield the near repeats among rows with different words."""
        rows = self._rows(different)
        one, two = candidates.candidate_pairs(rows)
        firsts, seconds = different[one], different[two]

        def jobs() -> Iterator[Job]:
            for start in runtime.progress(range(0, len(firsts), PAIRS), "comparing"):
                chunk = slice(start, start + PAIRS)
                both = np.concatenate([firsts[chunk], seconds[chunk]])
                indices, places = np.unique(both, return_inverse=True)
                yield fetch(indices.tolist()), places.reshape(2, -1).T.tolist()

        verdicts = itertools.chain.from_iterable(run(rows.table, jobs()))
        slots: dict[int, set[str]] = defaultdict(set)
        added: dict[int, set[int]] = defaultdict(set)
        found: list[tuple[Pair, Verdict]] = []
        for i, j, verdict in zip(
            firsts.tolist(), seconds.tolist(), verdicts, strict=True
        ):
            if slot := verdict.slot:
                slots[slot.frame] |= {slot.one, slot.other}
            if verdict.similarity >= LOWEST:
                found.append((Pair(i, j, verdict.similarity), verdict))
                for sentence in verdict.added:
                    added[sentence].add(i)
        for pair, (_, slot, more) in found:
            on_purpose = slot and len(slots[slot.frame]) >= candidates.FAMILY
            if not on_purpose and all(len(added[key]) >= POLITE for key in more):
                yield pair

    def _rows(self, different: candidates.Indices) -> candidates.Rows:
        """Return the fingerprints of these rows, with their words counted."""
        sizes = np.concatenate(self._sizes)
        keep = np.zeros(len(sizes), bool)
        keep[different] = True
        words = np.empty(sizes[different].sum(dtype=np.int64), np.uint32)
        row = word = 0
        for part, counts in zip(self._words, self._sizes, strict=True):
            kept = part[np.repeat(keep[row : row + len(counts)], counts)]
            words[word : word + len(kept)] = kept
            row, word = row + len(counts), word + len(kept)
        table = candidates.empty_table()
        for start in range(0, len(words), 2**20):
            candidates.count_words(table, words[start : start + 2**20])
        return candidates.Rows(
            np.concatenate(self._digits)[different],
            np.concatenate(self._letters)[different],
            np.concatenate(self._totals)[different],
            sizes[different],
            words,
            table,
        )
