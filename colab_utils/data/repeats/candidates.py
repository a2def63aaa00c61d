"""The pairs of rows that are worth comparing, found without looking at all pairs.

Two rows that repeat each other have nearly the same words and the same digits. So they
share two of their nine rarest words (a prefix filter; Chaudhuri et al. 2006). A word of
one row only can't be shared and does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colab_utils.data.repeats.hashes import MIXER, mix

KEPT = 48  # the words that are kept of a long row: its rarest
RAREST = 9
RARE = 2  # a typo is in so many rows at most
TABLE = 2**24  # the size of the table that counts the rows of each word
FAMILY = 4  # if so many words stand in one place of equal rows, it is on purpose
BUCKET, WINDOW = 32, 8  # in a larger bucket, a row is paired with its next neighbors
PART = 2**18  # rows whose keys are sorted at once: all keys take more memory
CHUNK = 20_000
MATRIX = 2**14  # words that are ranked at once

Words = NDArray[np.uint32]
Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]


def empty_table() -> Words:
    """Return the table that counts words, with zeros; it is read at random places.

    numpy asks for huge pages of memory for an array that it fills, and not for that of
    `np.zeros`. In them, the CPU finds a place in about half the time.
    """
    return np.full(TABLE, 0, np.uint32)


def count_words(table: Words, words: Words) -> None:
    """Add the words to the table."""
    np.add.at(table, words & np.uint32(TABLE - 1), np.uint32(1))


def look_up(table: Words, words: Words) -> Words:
    """Return how many rows have each of the words."""
    # Unlike an index in brackets, "clip" does not check the indices first.
    return table.take(words & np.uint32(TABLE - 1), mode="clip")


def keep_rarest(
    words: Words, sizes: Indices, table: Words
) -> tuple[Words, NDArray[np.uint8]]:
    """Return the `KEPT` rarest words of each row, and how many they are.

    Of two words that are equally rare, it is the one with the smaller number.
    """
    counts = np.minimum(look_up(table, words), np.uint32(2**17 - 1))
    ranks = counts.astype(np.uint64) << np.uint64(32) | words
    starts, last = np.cumsum(sizes) - sizes, np.full(len(sizes), 2**64 - 1, np.uint64)
    # Rows of nearly the same size make a matrix, which fits into the cache of the CPU.
    order = np.argsort(-sizes, kind="stable")
    long = order[: np.count_nonzero(sizes > KEPT)]
    while len(long):
        column = np.arange(sizes[long[0]])
        part, long = np.split(long, [max(MATRIX // len(column), 1)])
        ranked = ranks.take(starts[part][:, None] + column, mode="clip")
        ranked[column >= sizes[part][:, None]] = 2**64 - 1
        ranked.partition(KEPT - 1, axis=1)
        last[part] = ranked[:, KEPT - 1]
    keep = ranks <= np.repeat(last, sizes)
    return words[keep], np.minimum(sizes, KEPT).astype(np.uint8)


@dataclass
class Rows:
    """The fingerprints of different rows, and how many rows have each word."""

    digits: Words
    letters: NDArray[np.uint8]
    totals: Keys
    sizes: NDArray[np.uint8]
    words: Words
    table: Words

    def __post_init__(self) -> None:
        """Find where each row's words start, and the total of its other words."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        self._starts = ends - self.sizes
        self.rests = self.totals.copy()
        for chunk in self.chunks():
            first = self._starts[chunk[0]]
            words = mix(self.words[first : ends[chunk[-1]]].astype(np.uint64))
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words)])
            self.rests[chunk] -= sums[ends[chunk] - first]
            self.rests[chunk] += sums[self._starts[chunk] - first]

    def matrix(self, rows: Indices) -> Words:
        """Return the words of the rows, filled up with 0."""
        sizes = self.sizes[rows]
        column = np.arange(sizes.max(initial=1))
        words = self.words.take(self._starts[rows][:, None] + column, mode="clip")
        words[column >= sizes[:, None]] = 0
        return words

    def counts(self, matrix: Words) -> Words:
        """Return how many rows have each of the words; 0 for the fillings."""
        return np.where(matrix, look_up(self.table, matrix), np.uint32(0))

    def smallest(self) -> Words:
        """Return the smallest of each row's words; similar rows often share it."""
        return self.words[np.minimum(self._starts, len(self.words) - 1)]

    def chunks(self) -> Iterator[Indices]:
        """Yield the indices of all rows in chunks."""
        for start in range(0, len(self.sizes), CHUNK):
            yield np.arange(start, min(start + CHUNK, len(self.sizes)))


def candidate_pairs(rows: Rows) -> tuple[Indices, Indices]:
    """Return the pairs that may repeat each other: the first rows, the second rows."""
    if not len(rows.words):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    prefixes = np.concatenate([_prefixes(rows, chunk) for chunk in rows.chunks()])
    parts = -(-len(prefixes) // PART)
    found = [_same_keys(rows, prefixes, part, parts) for part in range(parts)]
    pairs = np.unique(np.concatenate(found))
    first = (pairs >> np.uint64(32)).astype(np.int64)
    second = (pairs & np.uint64(2**32 - 1)).astype(np.int64)
    near: list[Indices] = [np.empty(0, np.int64)]
    slots: list[Keys] = [np.empty((0, 3), np.uint64)]
    for start in range(0, len(pairs), CHUNK):
        chunk = slice(start, start + CHUNK)
        places, words = _near(rows, first[chunk], second[chunk])
        near.append(start + places)
        slots.append(words)
    kept = np.concatenate(near)
    kept = kept[~_in_families(np.concatenate(slots))]
    return first[kept], second[kept]


def _in_families(slots: Keys) -> NDArray[np.bool_]:
    """Return which pairs differ in one place where rows have `FAMILY` words or more.

    `slots` has three numbers for each pair: one for all words that both rows have, and
    the words in which they differ. The words are 0 for pairs that differ otherwise.
    """
    frames = np.unique(slots[:, 0], return_inverse=True)[1].astype(np.uint64)
    words = frames[:, None] << np.uint64(32) | slots[:, 1:]
    distinct = np.unique(words[slots[:, 1:] > 0]) >> np.uint64(32)
    sizes = np.bincount(distinct.astype(np.int64), minlength=len(slots))
    found: NDArray[np.bool_] = sizes[frames.astype(np.int64)] >= FAMILY
    return found & (slots[:, 1] > 0)


def _prefixes(rows: Rows, chunk: Indices) -> Words:
    """Return the rarest words of each row that another row has, too.

    A row with fewer of them has the numbers 1, 2 ... in their place.
    """
    matrix = rows.matrix(chunk)
    counts = rows.counts(matrix)
    ranked = counts.astype(np.uint64) << np.uint64(32) | matrix
    ranked[counts < 2] = np.uint64(2**64 - 1)
    if (missing := RAREST - ranked.shape[1]) > 0:
        ranked = np.pad(ranked, ((0, 0), (0, missing)), constant_values=2**64 - 1)
    ranked = np.sort(np.partition(ranked, RAREST - 1, axis=1)[:, :RAREST], axis=1)
    absent = ranked == 2**64 - 1
    numbered = np.cumsum(absent, axis=1, dtype=np.uint32)
    return np.where(absent, numbered, ranked.astype(np.uint32))


def _same_keys(rows: Rows, prefixes: Words, part: int, parts: int) -> Keys:
    """Return the pairs of rows with an equal key, as first << 32 | second.

    It looks at one of several parts of the keys.
    """
    keys: list[Keys] = []
    owners: list[Keys] = []
    hashes = mix(prefixes.astype(np.uint64))
    digits = rows.digits.astype(np.uint64) * np.uint64(MIXER)
    smallest = rows.smallest().astype(np.uint64) >> np.uint64(8)
    for one, other in itertools.combinations(range(RAREST), 2):
        if other - one > (2 if other < 6 else 1):
            continue
        key = mix(hashes[:, one] + hashes[:, other] + digits)
        here = key % np.uint64(parts) == part
        # Two numbers in place of words say nothing, unless a row has no others.
        here &= (prefixes[:, one] > RAREST) | (prefixes[:, 1] <= RAREST)
        owner = np.flatnonzero(here)
        # The upper 40 bits are the key. The lower ones bring similar rows together.
        keys.append(key[owner] >> np.uint64(24) << np.uint64(24) | smallest[owner])
        owners.append(owner.astype(np.uint64))
    key = np.concatenate(keys)
    again = np.flatnonzero(_repeated(key >> np.uint64(24)))
    order = again[np.argsort(key[again], kind="stable")]
    return _neighbors(key[order] >> np.uint64(24), np.concatenate(owners)[order])


def _repeated(keys: Keys) -> NDArray[np.bool_]:
    """Return which keys occur twice; a few of the others, too."""
    size = 2 << len(keys).bit_length()
    slots = keys % np.uint64(size)
    table = np.zeros(size, np.uint32)
    np.add.at(table, slots, np.uint32(1))
    return table[slots] > 1


def _neighbors(keys: Keys, owners: Keys) -> Keys:
    """Return all pairs of a small bucket, and near neighbors of a large one."""
    new = np.diff(keys, prepend=~keys[:1]) != 0
    bucket = np.cumsum(new) - 1
    small = np.bincount(bucket)[bucket] <= BUCKET if len(keys) else new
    at, found = np.arange(len(keys)), [np.empty(0, np.uint64)]
    for distance in range(1, BUCKET):
        at = at[at + distance < len(keys)]
        at = at[(keys[at] == keys[at + distance]) & (small[at] | (distance <= WINDOW))]
        one, other = owners[at], owners[at + distance]
        low, high = np.minimum(one, other), np.maximum(one, other)
        pairs = low << np.uint64(32) | high
        found.append(np.unique(pairs[low != high]))
    return np.unique(np.concatenate(found))


def _near(rows: Rows, first: Indices, second: Indices) -> tuple[Indices, Keys]:
    """Return which pairs have so much in common that they may repeat each other.

    A typo puts a rare word in the place of another, and changes one or two letters. So
    two rows that both have a common word that the other lacks do not repeat each other,
    nor do two rows whose different words have other letters. Also returns their slots,
    see `_in_families`.
    """
    one, other = rows.matrix(first), rows.matrix(second)
    both = np.sort(np.concatenate([one, other], axis=1), axis=1)
    again = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] != 0)
    shared = again.sum(axis=1)
    sizes = np.minimum(rows.sizes[first], rows.sizes[second]).astype(np.int64)
    common = [(rows.counts(words) > RARE).sum(axis=1) for words in (one, other)]
    # The rarest words of two long rows need not be the same, unless all others are.
    known = rows.rests[first] == rows.rests[second]
    spare = np.where(known | (sizes < KEPT), 1, 8)
    letters = (rows.letters[first] - rows.letters[second]).view(np.int8)
    more = np.maximum(letters, 0).sum(axis=1, dtype=np.int64)
    less = more - letters.sum(axis=1, dtype=np.int64)
    changed = np.maximum(rows.sizes[first], rows.sizes[second]) - shared
    near = np.minimum(*common) - shared <= spare
    near &= (2 * shared >= sizes) & (np.minimum(more, less) <= changed + spare)
    found = np.flatnonzero(near)
    one_word = known & (changed == 1) & (rows.sizes[first] == rows.sizes[second])
    slots = np.zeros((len(near), 3), np.uint64)
    both, again = both[one_word], again[one_word]
    single = both != 0
    single[:, 1:] &= ~again
    single[:, :-1] &= ~again
    frames = (mix(both[:, 1:]) * again).sum(axis=1, dtype=np.uint64)
    slots[one_word, 0] = frames + rows.rests[first][one_word]
    slots[one_word, 1:] = both[single].reshape(-1, 2)
    return found, slots[found]
