"""Fingerprints of many texts at once: numpy arrays in place of the texts.

All texts of a batch become one array of bytes. The hash of a word is a polynomial in
its bytes, modulo 2^64. Prefix sums give the polynomial of every word in one step.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from colab_utils.data.repeats.marks import BRACKETS, marks_of
from colab_utils.data.repeats.typos import PHRASES
from colab_utils.data.repeats.words import MARKS, UNSPACED

Array = NDArray[np.generic]
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
MIXER = 0xBF58476D1CE4E5B9
END = "\x1e"  # ends a text in the batch
OPERATORS = b"+*/<>=%^"
_SIGNS = re.compile(rf"[^\w\s\x00-\x7f{MARKS}]+")
_UNSPACED = re.compile(rf"([{UNSPACED}])")


@dataclass
class Fingerprints:
    """One number a row, except for `words`: the rows' distinct words, row after row."""

    exact: NDArray[np.uint64]  # equal for rows with the same words in the same order
    letters: NDArray[np.uint8]  # how often a row has each of 16 groups of letters
    digits: NDArray[np.uint32]  # equal for rows with the same digits in any order
    sizes: NDArray[np.int64]  # how many of `words` a row has
    words: NDArray[np.uint32]

    def split(self, rows: int) -> tuple[Fingerprints, Fingerprints]:
        """Return the first `rows` rows, and the rest."""
        words = int(self.sizes[:rows].sum())
        ends = [words if item.name == "words" else rows for item in fields(self)]
        columns = [getattr(self, item.name) for item in fields(self)]
        pairs = list(zip(columns, ends, strict=True))
        return (
            Fingerprints(*(column[:end] for column, end in pairs)),
            Fingerprints(*(column[end:] for column, end in pairs)),
        )


def join(parts: list[Fingerprints]) -> Fingerprints:
    """Return the fingerprints of the rows of all parts."""
    names = [item.name for item in fields(Fingerprints)]
    columns = [[getattr(part, name) for part in parts] for name in names]
    return Fingerprints(*map(np.concatenate, columns))


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes whose every bit depends on every bit of the numbers."""
    numbers = (numbers ^ (numbers >> np.uint64(32))) * np.uint64(MIXER)
    return (numbers ^ (numbers >> np.uint64(29))) * np.uint64(BASE)


@lru_cache(maxsize=4)
def powers(base: int, bits: int) -> NDArray[np.uint64]:
    """Return 1, base, base^2 ... modulo 2^64: 2^bits of them."""
    out = np.full(2**bits, base, np.uint64)
    out[:1] = 1
    return np.cumprod(out, dtype=np.uint64)


def word_hash(word: str) -> int:
    """Return the number that stands for a word in `Fingerprints.words`."""
    total, power = 0, 1
    for byte in word.encode("utf-8", "surrogatepass"):
        total, power = total + (byte + 1) * power, power * BASE % 2**64
    total %= 2**64
    total = (total ^ (total >> 32)) * MIXER % 2**64
    return ((total ^ (total >> 29)) * BASE % 2**64) >> 32


def fingerprint(batch: list[tuple[str, str]]) -> Fingerprints:
    """Return the fingerprints of rows, given as their prompts and answers."""
    texts = [text for pair in batch for text in pair]
    raw = np.frombuffer(_join(texts), np.uint8)
    is_word, ends = _table(_is_word_byte)[raw], np.flatnonzero(raw == ord(END))
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    bits = len(raw).bit_length()
    forward, backward = powers(BASE, bits), powers(INVERSE, bits)
    values = (raw.astype(np.uint64) + np.uint64(1)) * forward[: len(raw)]
    hashes = mix(_sums(values, starts, stops) * backward[starts])
    # The same polynomial over the words of a text gives the hash of the text.
    stop = np.searchsorted(starts, ends)
    start = np.concatenate([[0], stop[:-1]])
    texts_hash = _sums(hashes * forward[: len(hashes)], start, stop)
    texts_hash *= backward[start]
    for i in np.flatnonzero(start == stop):
        texts_hash[i] = _hash_of_signs(texts[i])
    for i, text in enumerate(texts):
        if not text.isalnum() and (signs := _signs_of(text)):
            texts_hash[i : i + 1] += np.uint64(_hash_of_signs(signs))  # no overflow
    prompts, answers = mix(texts_hash[::2]), mix(~texts_hash[1::2])
    rows = np.repeat(np.arange(len(texts)) // 2, stop - start).astype(np.uint64)
    tells = ~_phrases()[hashes >> np.uint64(48)]
    words = rows[tells] << np.uint64(32) | hashes[tells] >> np.uint64(32)
    distinct = np.unique(words)
    lengths = stops - starts
    letters = np.repeat(rows[tells].astype(np.int64) * 16, lengths[tells])
    letters += raw[is_word][np.repeat(tells, lengths)] & 15
    row_ends = ends[1::2]
    operators = _count(raw, row_ends, bytes(OPERATORS))
    return Fingerprints(
        mix(prompts + (answers << np.uint64(1)) + operators),
        np.bincount(letters, minlength=16 * len(batch))
        .astype(np.uint8)
        .reshape(-1, 16),
        (_count(raw, row_ends, b"0123456789") >> np.uint64(32)).astype(np.uint32),
        np.bincount((distinct >> np.uint64(32)).astype(np.int64), minlength=len(batch)),
        distinct.astype(np.uint32),
    )


@lru_cache(maxsize=1)
def _phrases() -> NDArray[np.bool_]:
    """Return which upper halves of `word_hash` belong to words that tell nothing."""
    table = np.zeros(2**16, bool)
    table[[word_hash(word) >> 16 for word in PHRASES]] = True
    return table


def _join(texts: list[str]) -> bytes:
    joined = END.join(texts) + END
    if joined.count(END) != len(texts):
        joined = END.join(text.replace(END, " ") for text in texts) + END
    if joined.isascii():
        return joined.lower().encode()
    joined = unicodedata.normalize("NFKC", joined).casefold()
    joined = _UNSPACED.sub(r" \1 ", _SIGNS.sub(" ", joined))
    return joined.encode("utf-8", "surrogatepass")


def _is_word_byte(byte: int) -> bool:
    return byte >= 128 or chr(byte).isalnum() or byte == ord("_")


def _table(test: object) -> NDArray[np.bool_]:
    return np.array([test(byte) for byte in range(256)])  # type: ignore[operator]


def _sums(
    values: NDArray[np.uint64], starts: Array, stops: Array
) -> NDArray[np.uint64]:
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    found: NDArray[np.uint64] = sums[stops] - sums[starts]
    return found


def _count(raw: Array, ends: Array, signs: bytes) -> NDArray[np.uint64]:
    """Return for each row a hash of how often it has each of the signs."""
    table = np.zeros(256, np.uint64)
    table[list(signs)] = mix(np.array(list(signs), np.uint64))
    at = np.flatnonzero(table[raw])
    stop = np.searchsorted(at, ends)
    return _sums(table[raw[at]], np.concatenate([[0], stop[:-1]]), stop)


def _signs_of(text: str) -> str:
    """Return the signs and the opening brackets of a text."""
    brackets = BRACKETS.findall(text)
    return marks_of(text) + "".join(brackets)


def _hash_of_signs(text: str) -> int:
    """Return a hash of a text, without its spaces."""
    signs = "".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(signs, digest_size=8).digest(), "big") if signs else 0
