"""Sentences of politeness around a text: greetings, thanks, announcements."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from enum import Enum

from colab_utils.data.repeats.sentences import Text
from colab_utils.data.repeats.typos import FILLERS, PHRASES, VOWELS, one_edit

SIGNED = frozenset(("regards", "sincerely", "cheers", "thanks", "yours", "dear", "hi"))
# Somebody speaks to somebody.
ADDRESS = frozenset(
    """
    i you your yours me my mine we us our everyone everybody anyone anybody
    """.split()  # noqa: SIM905
)
# A sentence with such a word asks for another answer.
ORDERS = frozenset(
    """
    only without must should shall except however unless instead avoid use uses using
    least most each every both otherwise also write return include answer english french
    spanish german short long brief briefly word words sentence sentences list step
    steps line lines format
    """.split()  # noqa: SIM905
)
DENIALS = frozenset(
    ("not", "no", "never", "none", "nor", "don", "t", "if", "but", "all")
)
LONGEST = 16  # words of such a sentence
LONG_WORD = 7  # letters of a word to which a typo gives no other word
INTACT = 0.75  # the share of a phrase's words that have no typo, at least


class Kind(Enum):
    """What a sentence is that only one of two texts has."""

    CONTENT = 0
    POLITE = 1
    UNKNOWN = 2  # polite if two rows or more differ from another in nothing else


def kind_of(text: Text, part: range, others: frozenset[str]) -> Kind:
    """Return what an added part is; `others` are the words of the row's other text.

    A sentence about the subject shares words with the rest of the row.
    """
    words = set(text.words[part.start : part.stop])
    if is_phrase(words) or is_phrase(_corrected(words)):
        return Kind.POLITE
    row = others.union(text.words[: part.start], text.words[part.stop :])
    starts = {part.start, *itertools.accumulate(map(len, text.sentences))}
    capitals = (text.cased[i] for i in part if i not in starts)
    names = {word for word in capitals if word[0].isupper() and word != "I"}
    own = words - FILLERS
    about = own & row
    if (
        not all(map(str.isalpha, words))
        or len(part) > LONGEST
        or words & ORDERS
        or (names and text.names)
        or 2 * len(about) >= max(len(own), 2)
    ):
        return Kind.CONTENT
    polite = not words.isdisjoint(ADDRESS) and words.isdisjoint(DENIALS)
    return Kind.POLITE if polite and not about else Kind.UNKNOWN


def is_phrase(words: Collection[str]) -> bool:
    """Return whether all words are of greetings, or of a signature with a name."""
    unknown = set(words) - PHRASES
    if not unknown and FILLERS.issuperset(words):
        return "you" in words
    signed = len(unknown) <= 2 and not SIGNED.isdisjoint(words)
    return not unknown or (signed and all(map(str.isalpha, unknown)))


def _corrected(words: set[str]) -> set[str]:
    """Return the words of a sentence without typos of long words of greetings.

    A word without a vowel may be a typo of a shorter one.
    """
    right = {word: _right_word(word) for word in words - PHRASES}
    if len(right) > (1 - INTACT) * len(words):
        return words
    return {right.get(word, word) for word in words}


def _right_word(word: str) -> str:
    """Return the word of `PHRASES` in which a letter was lost, added or moved."""
    least = LONG_WORD if VOWELS & set(word) else 4
    return next(
        (
            right
            for right in PHRASES
            if len(right) >= least
            and right[0] == word[0]
            and one_edit(word, right) in ("add", "swap")
        ),
        word,
    )


def added_runs(text: Text, rest: Counter[str]) -> tuple[list[range], Counter[str]]:
    """Return the parts that may have been added to a text, and the words left over.

    `rest` are the words that another text lacks. The parts are a start and an end of
    the text, and phrases between two stops within it.
    """
    size, count = len(text.words), rest.total()
    if count > 2 * LONGEST:
        return [], rest
    for start in range(count + 1):
        ends = range(start), range(size - count + start, size)
        words = Counter(text.words[i] for part in ends for i in part)
        if words == rest and all(_stands_alone(text, part) for part in ends):
            return [part for part in ends if part], Counter()
    rest, parts, end = rest.copy(), [], 0
    for sentence in text.sentences:
        start, end = end, end + len(sentence)
        words = Counter(sentence)
        if words <= rest and (start == 0 or end == size or is_phrase(words)):
            rest -= words
            parts.append(range(start, end))
    return parts, rest


def _stands_alone(text: Text, part: range) -> bool:
    """Return whether a start or an end of a text is a sentence, or begins like one."""
    words = text.words[part.start : part.stop]
    if not words or is_phrase(words):
        return True
    starts = {0, *itertools.accumulate(map(len, text.sentences))}
    if part.start == 0:
        return part.stop in starts
    return part.start in starts or text.cased[part.start][0].isupper()
