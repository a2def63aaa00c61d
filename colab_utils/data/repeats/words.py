"""The words of a text, as duplicates are judged by them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from hashlib import blake2b

from colab_utils.data.repeats import typos

# Scripts without spaces between words: each sign counts as a word.
UNSPACED = (
    "\u0e01-\u0e30\u0e40-\u0e46\u0e81-\u0eb0\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
)
# Vowel signs and accents. They are part of a word, and Python's \w leaves them out.
MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f"
    "\u0955-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a51\u0a81-\u0acd"
    "\u0b01-\u0b57\u0b82-\u0bcd\u0c00-\u0c56\u0c81-\u0cd6\u0d00-\u0d4d\u0e31"
    "\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e"
    "\u17b4-\u17d3"
)
# "C++" and "C#" are words of their own, but "a+b" is two words.
WORD = re.compile(
    rf"[{UNSPACED}][{MARKS}]*|(?:(?![{UNSPACED}])[\w{MARKS}])+(?:[+#]+(?!\w))?"
)


def text_hash(text: str) -> int:
    """Return 64 bits that stand for a text, the same in each process."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def normalize(text: str) -> str:
    """Return the words in lower case: "Hello,  C++!" becomes "hello c++".

    A text without words keeps its other characters.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(WORD.findall(text) or text.split())


def shingles(text: str) -> frozenset[str]:
    """Return the pairs of neighboring words of a text.

    "to be or" becomes {"to be", "be or"}.
    """
    words = normalize(text).split() or [""]
    return frozenset(map(" ".join, itertools.pairwise(words))) or frozenset(words)


def differing(one: list[str], other: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Return the words that one text has more often, and those that the other has.

    They are in the order of the text.
    """
    missing, extra = Counter[str](), Counter[str]()
    if one == other:
        return missing, extra
    start = typos.same_start(one, other)  # most of two similar texts is the same
    end = typos.same_start(one[:start:-1], other[:start:-1])
    left = Counter(one[start : len(one) - end])
    right = Counter(other[start : len(other) - end])
    for found, text, counts, others in (
        (missing, one, left, right),
        (extra, other, right, left),
    ):
        words = {word for word, count in counts.items() if count > others[word]}
        for word in filter(words.__contains__, text):
            found[word] = counts[word] - others[word]
    return missing, extra
