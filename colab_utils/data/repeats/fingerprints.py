"""Fingerprints of many texts at once: numpy arrays in place of the texts.

All texts of a batch become one array of bytes. A text is hashed by a polynomial in the
hashes of its words, modulo 2^64. Prefix sums give the polynomials of all texts at once.
"""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colab_utils.data.repeats.hashes import (
    BASE,
    INVERSE,
    Hashes,
    Indices,
    mix,
    powers,
    sums,
    word_hash,
    word_hashes,
)
from colab_utils.data.repeats.marks import BRACKETS, marks_of
from colab_utils.data.repeats.typos import PHRASES
from colab_utils.data.repeats.words import MARKS, UNSPACED, text_hash

END = "\x1e"  # ends a text in the batch
PIECE = 2**18  # characters whose fingerprints are computed at once
WORD, DIGIT, OPERATOR, BETWEEN = 1, 2, 4, 8  # kinds of bytes; a digit is of a word
_KINDS = bytes(
    WORD | DIGIT * (byte in b"0123456789")
    if byte >= 128 or chr(byte).isalnum() or byte == ord("_")
    else OPERATOR * (byte in b"+*/<>=%^") | BETWEEN * (byte == ord(END))
    for byte in range(256)
)
FOURTH = np.uint64(0x000F000F000F000F)
EMOJI = ((0x2600, 0x27BF), (0x1F300, 0x1FAFF))
LAST_SIGN = EMOJI[-1][1]
STOP = 2  # a sign that ends a part of a sentence before a space
_SIGNS = re.compile(rf"[^\w\s\x00-\x7f{MARKS}]+")
_UNSPACED = re.compile(rf"([{UNSPACED}])")


@dataclass
class Fingerprints:
    """One number a row, except for `words`: the rows' distinct words, row after row."""

    exact: Hashes  # equal for rows with the same words in the same order
    letters: NDArray[np.uint8]  # how often a row has each of 16 groups of letters
    digits: NDArray[np.uint32]  # equal for rows with the same digits in any order
    totals: Hashes  # the sum of `mix` of all words, also of repeated ones
    sizes: NDArray[np.int64]  # how many of `words` a row has
    words: NDArray[np.uint32]

    def split(self, rows: int) -> tuple[Fingerprints, Fingerprints]:
        """Return the first `rows` rows, and the rest."""
        words = int(self.sizes[:rows].sum())
        pairs = [(c, words if c is self.words else rows) for c in self.columns()]
        return (
            Fingerprints(*(column[:end] for column, end in pairs)),
            Fingerprints(*(column[end:] for column, end in pairs)),
        )

    def only(self, keep: NDArray[np.bool_]) -> Fingerprints:
        """Return the rows for which `keep` is true."""
        kept = [column[keep] for column in self.columns()[:-1]]
        kept.append(self.words[np.repeat(keep, self.sizes)])
        return Fingerprints(*kept)

    def columns(self) -> list[NDArray[Any]]:
        """Return the fields in their order."""
        return [getattr(self, item.name) for item in fields(self)]


def join(parts: list[Fingerprints]) -> Fingerprints:
    """Return the fingerprints of the rows of all parts."""
    columns = zip(*(part.columns() for part in parts), strict=True)
    return Fingerprints(*map(np.concatenate, columns))


def fingerprint(batch: list[tuple[str, str]]) -> Fingerprints:
    """Return the fingerprints of rows, given as their prompts and answers.

    The time is that of a few passes over the bytes. They are fastest in the cache of
    the CPU, so the rows are best given in `pieces`.
    """
    return _scan(batch).prints()


def with_prompts(batch: list[tuple[str, str]]) -> tuple[Fingerprints, Fingerprints]:
    """Return the fingerprints of rows, and those of the rows without their answers."""
    found = _scan(batch)
    return found.prints(), found.prints(answers=False)


@dataclass
class _Scan:
    """Numbers of texts; text 0 is a prompt, text 1 its answer, text 2 a prompt ..."""

    hashes: Hashes
    letters: Hashes  # see `_letters`
    totals: Hashes  # the sum of `mix` of all words
    digits: Hashes  # a hash of how often a text has each digit
    operators: Hashes
    words: Hashes  # words that tell something: row << 33 | word << 1 | text, sorted

    def prints(self, *, answers: bool = True) -> Fingerprints:
        """Return the fingerprints of the rows, with or without their answers."""

        def of_rows(numbers: Hashes) -> Hashes:
            prompts: Hashes = numbers[..., ::2]
            return prompts + numbers[..., 1::2] if answers else prompts

        second = self.hashes[1::2] * np.uint64(answers)
        first = np.diff(self.words >> np.uint64(1), prepend=~self.words[:1]) != 0
        if not answers:
            first &= self.words & np.uint64(1) == 0  # a word of a prompt comes first
        distinct = self.words[first]
        row = (distinct >> np.uint64(33)).view(np.int64)
        exact = mix(self.hashes[::2]) + (mix(~second) << np.uint64(1))
        return Fingerprints(
            mix(exact + of_rows(self.operators)),
            of_rows(self.letters).T.copy().view(np.uint8)[:, ::2],
            (of_rows(self.digits) >> np.uint64(32)).astype(np.uint32),
            of_rows(self.totals),
            np.bincount(row, minlength=len(exact)),
            (distinct >> np.uint64(1)).astype(np.uint32),
        )


def _scan(batch: list[tuple[str, str]]) -> _Scan:
    texts = [*itertools.chain.from_iterable(batch)]
    joined = _join(texts)
    encoded = _comparable(joined)
    raw = np.frombuffer(encoded, np.uint8)
    kinds = np.frombuffer(encoded.translate(_KINDS), np.uint8)
    others = np.flatnonzero(kinds > WORD)
    kind, signs = kinds[others], raw[others]
    ends = others[kind == BETWEEN][1:]
    is_word = (kinds & WORD).view(bool)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, stops = edges[::2], edges[1::2]
    hashes = word_hashes(encoded, starts, stops)
    stop = np.searchsorted(starts, ends)
    start = np.concatenate([[0], stop])[:-1]
    tells = _telling()[(hashes >> np.uint64(48)).view(np.int64)]
    words = hashes >> np.uint64(32)
    text = np.arange(len(texts), dtype=np.uint64)
    text = text >> np.uint64(1) << np.uint64(33) | text & np.uint64(1)
    pairs = np.repeat(text, stop - start) | words << np.uint64(1)
    digits, operators = (
        _count(signs[kind == one], np.searchsorted(others[kind == one], ends))
        for one in (DIGIT | WORD, OPERATOR)
    )
    return _Scan(
        _of_texts(texts, joined, hashes, start, stop),
        sums(_letters(raw, starts, stops, tells), start, stop),
        sums(mix(words), start, stop),
        digits,
        operators,
        np.sort(pairs[tells]),
    )


def _of_texts(
    texts: list[str], joined: str, hashes: Hashes, start: Indices, stop: Indices
) -> Hashes:
    """Return the hash of each text: a polynomial over its words, and its signs."""
    bits = len(hashes).bit_length()
    found = sums(hashes * powers(BASE, bits)[: len(hashes)], start, stop)
    found *= powers(INVERSE, bits)[start]
    for i in np.flatnonzero(start == stop):
        found[i] = _hash_of_signs(texts[i])
    for i, text in _near_signs(joined):
        if signs := marks_of(text) + "".join(BRACKETS.findall(text)):
            found[i : i + 1] += np.uint64(_hash_of_signs(signs))  # no overflow
    return found


def pieces(batch: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield the rows in pieces of about 256 KB."""
    ends = [*itertools.accumulate(len(asked) + len(said) for asked, said in batch)]
    start = size = 0
    while True:
        stop = bisect.bisect_left(ends, size + PIECE, start) + 1
        yield batch[start:stop]
        if stop >= len(batch):
            return
        start, size = stop, ends[stop - 1]


def _letters(
    raw: NDArray[np.uint8], starts: Indices, stops: Indices, tells: NDArray[np.bool_]
) -> Hashes:
    """Return how often each word has letters of 16 groups, as 4 x 4 numbers of 16 bits.

    A letter adds 1 to one of 16 numbers of 4 bits, of which prefix sums add up those of
    a word. Of 16 letters of one group, it counts one of the next group. The numbers of
    words that tell nothing are 0.
    """
    places = (raw & np.uint8(15)) << np.uint8(2)
    words = sums(np.left_shift(np.uint64(1), places, dtype=np.uint64), starts, stops)
    words *= tells
    return np.stack([words >> np.uint64(4 * i) & FOURTH for i in range(4)])


@lru_cache(maxsize=1)
def _telling() -> NDArray[np.bool_]:
    """Return which upper 16 bits of `word_hash` belong to no word of `PHRASES`."""
    table = np.ones(2**16, bool)
    table[[word_hash(word) >> 16 for word in PHRASES]] = False
    return table


def _join(texts: list[str]) -> str:
    """Return the texts, with an `END` before, between and after them."""
    joined = END.join(["", *texts, ""])
    if joined.count(END) > len(texts) + 1:
        joined = END.join(["", *(text.replace(END, " ") for text in texts), ""])
    return joined


def _comparable(joined: str) -> bytes:
    """Return texts in lower case, without signs that are not ASCII, in UTF-8."""
    if joined.isascii():
        return joined.lower().encode()
    joined = unicodedata.normalize("NFKC", joined).casefold()
    joined = _UNSPACED.sub(r" \1 ", _SIGNS.sub(" ", joined))
    return joined.encode("utf-8", "surrogatepass")


def _count(signs: NDArray[np.uint8], stop: Indices) -> Hashes:
    """Return for each text a hash of how often it has each sign, up to its stop."""
    start = np.concatenate([[0], stop])[:-1]
    return sums(mix(signs.astype(np.uint64)), start, stop)


def _near_signs(joined: str) -> Iterator[tuple[int, str]]:
    """Yield the texts that have signs: their numbers, and what is next to the signs.

    What a sign means depends on two characters before and after it. A comma is none,
    nor is a stop between a word and a space.
    """
    ascii = joined.isascii()
    encoding = "ascii" if ascii else "utf-32-le"
    encoded = joined.encode(encoding, "surrogatepass")
    codes: NDArray[Any] = np.frombuffer(encoded, np.uint8 if ascii else np.uint32)
    # Most characters are letters or spaces, which need no table.
    at = np.flatnonzero((codes > ord(" ")) & ((codes | 32) - ord("a") > 25))
    kinds, before = (
        _signs()[np.minimum(codes[places], LAST_SIGN + 1, dtype=np.int64)]
        for places in (at, at - 1)
    )
    stop = (kinds == STOP) & (codes[at + 1] <= ord(" ")) & (before == 0)
    signs, stops = at[(kinds > 0) & ~stop], at[stop]
    near = codes == ord(END)
    numbers = np.searchsorted(np.flatnonzero(near), signs) - 1
    for distance in range(-2, 3):  # -1 is the last character, which is an END, too
        near[np.minimum(signs + distance, len(near) - 1)] = True
    codes = codes.copy()
    codes[stops] = ord(" ")
    texts = codes[near].tobytes().decode(encoding, "surrogatepass").split(END)[1:]
    for i in np.unique(numbers).tolist():
        yield i, texts[i]


@lru_cache(maxsize=1)
def _signs() -> NDArray[np.uint8]:
    """Return for each code point whether it may be a sign of `marks`: 0, 1 or STOP."""
    table = np.zeros(LAST_SIGN + 2, np.uint8)
    table[33:128] = [not chr(code).isalnum() for code in range(33, 128)]
    table[[ord(sign) for sign in "£¥€₹"]] = 1
    for first, last in EMOJI:
        table[first : last + 1] = 1
    table[[ord(sign) for sign in "_,"]] = 0
    table[[ord(sign) for sign in ".:;?!"]] = STOP
    return table


def _hash_of_signs(text: str) -> int:
    """Return a hash of a text, without its spaces."""
    signs = "".join(text.split())
    return text_hash(signs) if signs else 0
