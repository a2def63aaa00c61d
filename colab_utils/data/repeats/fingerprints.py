"""Fingerprints of many texts at once: numpy arrays in place of the texts.

All texts of a batch become one array of bytes. A text is hashed by a polynomial in the
hashes of its words, modulo 2^64. Prefix sums give the polynomials of all texts at once.
"""

from __future__ import annotations

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
PIECE = 2**17  # characters whose fingerprints are computed at once
WORD, DIGIT, OPERATOR = 1, 2, 4  # kinds of bytes; a digit is a part of a word
_KINDS = bytes(
    WORD | DIGIT * (byte in b"0123456789")
    if byte >= 128 or chr(byte).isalnum() or byte == ord("_")
    else OPERATOR * (byte in b"+*/<>=%^")
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
    """Numbers of texts and of their words; text 0 is a prompt, text 1 its answer."""

    hashes: Hashes  # of each word
    letters: Hashes  # of each word, see `_letters`
    starts: Indices  # the first word of each text
    stops: Indices
    texts: Hashes  # the hash of each text
    digits: Hashes  # of each text: how often it has each digit
    operators: Hashes

    def prints(self, *, answers: bool = True) -> Fingerprints:
        """Return the fingerprints of the rows, with or without their answers."""
        end = 1 if answers else 0
        start, stop = self.starts[::2], self.stops[end::2]
        texts, digits, operators = self.texts, self.digits[::2], self.operators[::2]
        second = texts[1::2] * np.uint64(end)
        if answers:
            digits = digits + self.digits[1::2]
            operators = operators + self.operators[1::2]
        text = np.repeat(np.arange(len(texts)), self.stops - self.starts)
        tells = ~_phrases()[self.hashes >> np.uint64(48)]
        telling = tells if answers else tells & (text % 2 == 0)
        row = (text[telling] // 2).astype(np.uint64)
        words = row << np.uint64(32) | self.hashes[telling] >> np.uint64(32)
        distinct = np.unique(words)
        letters = sums(self.letters * tells, start, stop)
        return Fingerprints(
            mix(mix(texts[::2]) + (mix(~second) << np.uint64(1)) + operators),
            letters.T.copy().view(np.uint8)[:, ::2],
            (digits >> np.uint64(32)).astype(np.uint32),
            sums(mix(self.hashes >> np.uint64(32)), start, stop),
            np.bincount(
                (distinct >> np.uint64(32)).astype(np.int64), minlength=len(start)
            ),
            distinct.astype(np.uint32),
        )


def _scan(batch: list[tuple[str, str]]) -> _Scan:
    texts = [text for pair in batch for text in pair]
    joined = _join(texts)
    encoded = _comparable(joined)
    raw = np.frombuffer(encoded, np.uint8)
    kinds = np.frombuffer(encoded.translate(_KINDS), np.uint8)
    ends = np.flatnonzero(raw == ord(END))[1:]
    is_word = (kinds & WORD).view(bool)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, stops = edges[::2], edges[1::2]
    hashes = word_hashes(encoded, starts, stops)
    # A polynomial over the words of a text gives the hash of the text.
    stop = np.searchsorted(starts, ends)
    start = np.concatenate([[0], stop])[:-1]
    bits = len(hashes).bit_length()
    texts_hash = sums(hashes * powers(BASE, bits)[: len(hashes)], start, stop)
    texts_hash *= powers(INVERSE, bits)[start]
    for i in np.flatnonzero(start == stop):
        texts_hash[i] = _hash_of_signs(texts[i])
    for i, text in _near_signs(joined):
        if signs := marks_of(text) + "".join(BRACKETS.findall(text)):
            texts_hash[i : i + 1] += np.uint64(_hash_of_signs(signs))  # no overflow
    return _Scan(
        hashes,
        _letters(raw, starts, stops),
        start,
        stop,
        texts_hash,
        _count(raw, kinds == DIGIT | WORD, ends),
        _count(raw, kinds == OPERATOR, ends),
    )


def pieces(batch: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield the rows in pieces of about 128 KB."""
    piece, size = [], 0
    for pair in batch:
        piece.append(pair)
        size += len(pair[0]) + len(pair[1])
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece or not batch:
        yield piece


def _letters(raw: NDArray[np.uint8], starts: Indices, stops: Indices) -> Hashes:
    """Return how often each word has letters of 16 groups, as 4 x 4 numbers of 16 bits.

    A letter adds 1 to one of 16 numbers of 4 bits, of which prefix sums add up those of
    a word. Of 16 letters of one group, it counts one of the next group.
    """
    places = (raw & np.uint8(15)) << np.uint8(2)
    words = sums(np.left_shift(np.uint64(1), places, dtype=np.uint64), starts, stops)
    return np.stack([words >> np.uint64(4 * i) & FOURTH for i in range(4)])


@lru_cache(maxsize=1)
def _phrases() -> NDArray[np.bool_]:
    """Return which upper halves of `word_hash` belong to words that tell nothing."""
    table = np.zeros(2**16, bool)
    table[[word_hash(word) >> 16 for word in PHRASES]] = True
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


def _count(raw: NDArray[np.uint8], where: NDArray[np.bool_], ends: Indices) -> Hashes:
    """Return for each text a hash of how often it has each of the signs somewhere."""
    at = np.flatnonzero(where)
    stop = np.searchsorted(at, ends)
    signs = mix(raw[at].astype(np.uint64))
    return sums(signs, np.concatenate([[0], stop])[:-1], stop)


def _near_signs(joined: str) -> Iterator[tuple[int, str]]:
    """Yield the texts that have signs: their numbers, and what is next to the signs.

    What a sign means depends on two characters before and after it. A comma is none,
    nor is a stop between a word and a space.
    """
    ascii = joined.isascii()
    codes: NDArray[Any] = np.frombuffer(
        joined.encode("ascii" if ascii else "utf-32-le", "surrogatepass"),
        np.uint8 if ascii else np.uint32,
    )
    kinds = _signs()[codes if ascii else np.minimum(codes, LAST_SIGN + 1)]
    after, before = np.roll(codes, -1), np.roll(kinds, 1)
    stops = (kinds == STOP) & (after <= ord(" ")) & (before == 0)
    signs = (kinds > 0) & ~stops
    if not signs.any():
        return
    near = signs | (codes == ord(END))
    for distance in (1, 2):
        near[distance:] |= signs[:-distance]
        near[:-distance] |= signs[distance:]
    kept = np.where(stops[near], ord(" "), codes[near]).astype(codes.dtype)
    encoding = "ascii" if ascii else "utf-32-le"
    texts = kept.tobytes().decode(encoding, "surrogatepass")
    for i, text in enumerate(texts.split(END)[1:]):
        if text:
            yield i, text


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
