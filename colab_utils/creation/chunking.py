"""Chunks: parts of a document with at most so many tokens, which overlap."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils.creation.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Where a chunk may end, the best place first: after a paragraph, a sentence, a word.
ENDS = (r"(?=\n\n)", r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]|(?=\n)", r"(?=\s)")


@dataclass(frozen=True)
class Chunk:
    """A part of a document: its number there, its text and its number of tokens.

    `start` and `end` are positions in the document's text.
    """

    document: str
    number: int
    text: str
    tokens: int
    start: int
    end: int


def chunk(
    documents: list[Document], tokenizer: Tokenizer, max_tokens: int, overlap: int
) -> list[Chunk]:
    """Split documents into chunks of at most `max_tokens` tokens.

    A chunk ends after a paragraph, a sentence or a word if there is one in its second
    half. Neighbors share at least `overlap` tokens, and up to twice as many if the
    shared part can then begin with a sentence. Raises ValueError if `overlap` is more
    than a quarter of `max_tokens`.
    """
    if max_tokens < 16 or not 0 <= overlap <= max_tokens // 4:
        raise ValueError(
            f"Chunks of {max_tokens} tokens with an overlap of {overlap}: a chunk "
            "needs at least 16 tokens, and an overlap of at most a quarter of them."
        )
    chunks = []
    for document in documents:
        number = 0
        for start, end in _spans(document.text, tokenizer, max_tokens, overlap):
            if text := document.text[start:end].strip():
                number += 1
                tokens = len(_ids(tokenizer, text))
                chunks.append(Chunk(document.name, number, text, tokens, start, end))
    return chunks


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _spans(
    text: str, tokenizer: Tokenizer, size: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each chunk; together they cover the whole text."""
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    starts = [begin for begin, _ in encoding["offset_mapping"]]
    total = len(starts)
    places = [0, *starts[1:], len(text)]  # of each token, and the end
    cuts = _cuts(text, places)
    first = last = 0
    while last < total:
        last = total
        if total - first > size:
            last = _pick(cuts, first + size // 2, first + size, first)
        # Cut out of its text, a chunk may have other tokens, and more of them.
        while (extra := _over(text[places[first] : places[last]], tokenizer, size)) > 0:
            shorter = _pick(cuts[-1:], first, last - extra, first)
            if shorter >= last:  # a single character
                break
            last = shorter
        yield places[first], places[last]
        if last < total:
            low = max(last - 2 * overlap - 1, first)
            first = _pick(cuts, low, last - overlap, first)


def _over(text: str, tokenizer: Tokenizer, size: int) -> int:
    return len(_ids(tokenizer, text.strip())) - size


def _cuts(text: str, places: list[int]) -> list[list[int]]:
    """Return the tokens before which a text may be cut, one list for each of ENDS.

    The last list has all tokens that begin a character: one can have several tokens.
    """
    every = [0] + [i for i in range(1, len(places)) if places[i] > places[i - 1]]
    begins = set(every)
    found = []
    for pattern in ENDS:
        ends = (match.end() for match in re.finditer(pattern, text))
        tokens = sorted({bisect_left(places, end) for end in ends})
        found.append([token for token in tokens if token in begins])
    return [*found, every]


def _pick(cuts: list[list[int]], low: int, high: int, first: int) -> int:
    """Return the last cut above `low` and up to `high`, from the first list with one.

    Without one it is the last cut up to `high`, and in any case one after `first`.
    """
    for places in cuts:
        i = bisect_right(places, high) - 1
        if i >= 0 and places[i] > low:
            return places[i]
    every = cuts[-1]
    return every[max(bisect_right(every, high) - 1, bisect_right(every, first))]
