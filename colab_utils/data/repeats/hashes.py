"""Hashes of words: numbers of 64 bits that stand for them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from colab_utils.data.repeats.words import text_hash

Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
MIXER = 0xBF58476D1CE4E5B9
LONGEST = 64  # bytes of a word that is hashed with the others
BLOCK = 31 * 2**20


def keep_freed_memory() -> None:
    """Let the C library keep up to 62 MB of freed memory for the next arrays.

    glibc returns an array of more than 128 KB to the system until a larger one was
    freed. New memory costs as much time as a pass over the array.
    """
    np.empty(BLOCK, np.uint8)


def mix(numbers: Hashes) -> Hashes:
    """Return hashes whose every bit depends on every bit of the numbers."""
    numbers = (numbers ^ (numbers >> np.uint64(32))) * np.uint64(MIXER)
    return (numbers ^ (numbers >> np.uint64(29))) * np.uint64(BASE)


def sums(values: Hashes, starts: Indices, stops: Indices) -> Hashes:
    """Return the sums of the values from each start to its stop, on the last axis."""
    running = np.empty((*values.shape[:-1], values.shape[-1] + 1), np.uint64)
    running[..., 0] = 0
    np.cumsum(values, axis=-1, out=running[..., 1:])
    found: Hashes = running[..., stops] - running[..., starts]
    return found


@lru_cache(maxsize=4)
def powers(base: int, bits: int) -> Hashes:
    """Return 1, base, base^2 ... modulo 2^64: 2^bits of them."""
    out = np.full(2**bits, base, np.uint64)
    out[:1] = 1
    return np.cumprod(out, dtype=np.uint64)


def word_hash(word: str) -> int:
    """Return the number that stands for a word in `Fingerprints.words`."""
    data = word.encode("utf-8", "surrogatepass")
    if len(data) > LONGEST:
        return text_hash(word) >> 32
    total = 0
    for start in range(0, len(data), 8):
        total = (total + int.from_bytes(data[start : start + 8], "little")) % 2**64
        total = (total ^ (total >> 32)) * MIXER % 2**64
        total = (total ^ (total >> 29)) * BASE % 2**64
    return total >> 32


def word_hashes(encoded: bytes, starts: Indices, stops: Indices) -> Hashes:
    """Return the hash of each word; a word of up to 8 bytes has one of its own."""
    padded = encoded + bytes(8)
    eight: Hashes = np.ndarray((len(encoded) + 1,), "<u8", padded, 0, (1,))
    sizes = stops - starts
    masks = np.array([2 ** (8 * size) - 1 for size in range(9)], np.uint64)
    hashes = mix(eight[starts] & masks[np.minimum(sizes, 8)])
    longer = np.flatnonzero(sizes > 8)
    for start in range(8, LONGEST, 8):
        part = (
            eight[starts[longer] + start] & masks[np.minimum(sizes[longer] - start, 8)]
        )
        hashes[longer] = mix(hashes[longer] + part)
        longer = longer[sizes[longer] > start + 8]
        if not len(longer):
            break
    for i in longer:
        word = encoded[starts[i] : stops[i]].decode("utf-8", "surrogatepass")
        hashes[i] = text_hash(word)
    return hashes
