"""Find sentences that many rows share, such as one long instruction."""

from __future__ import annotations

from collections import Counter

from colab_utils.data.repeats.sentences import SENTENCE
from colab_utils.data.repeats.words import normalize

SAMPLE = 1000  # rows that are looked at
SHARE = 0.2  # a sentence that this share of the rows have is shared
WORDS = 5  # a sentence with fewer words is not reported


def shared(texts: list[tuple[str, str]]) -> str:
    """Return a line on the sentences that many rows share; "" if there are none.

    For more than 1,000 rows, it looks at every second one, or every third, and so on.
    """
    sample = texts[:: -(-len(texts) // SAMPLE) or 1]
    counts: Counter[str] = Counter()
    starts: dict[str, str] = {}
    for pair in sample:
        sentences = [part.strip() for text in pair for part in SENTENCE.split(text)]
        originals = {normalize(part): part for part in sentences}
        counts.update(originals.keys())
        starts |= originals
    found = [
        (count, words)
        for words, count in counts.items()
        if count >= max(3, SHARE * len(sample)) and len(words.split()) >= WORDS
    ]
    if not found:
        return ""
    count, words = max(found, key=lambda item: item[0])
    text, more = starts[words], len(found) - 1
    rows = "sampled rows" if len(sample) < len(texts) else "rows"
    return (
        f"shared by {count:,} of {len(sample):,} {rows} and not compared: "
        f"'{text[:60]}{'...' if len(text) > 60 else ''}'"
        + (f", and {more} more sentences of this kind" if more else "")
    )
