"""Whether two texts with the same words in another order say the same."""

from __future__ import annotations

import itertools
from collections import Counter

from colab_utils.data.repeats.sentences import Text, Words
from colab_utils.data.repeats.typos import FILLERS, same_start

# What these words say depends on the words next to them.
SCOPE = frozenset(["not", "no", "never", "only", "even", "almost", "nearly"])
SHORTEST = 6  # in a shorter text, no words are exchanged by mistake
# Swapped content words may be a mistake in a text of at least so many words: a program,
# prose, and any text if a word is in SCOPE.
CODE, SHORT, LONG = 8, 12, 25
FEWEST = 4  # words of a question with a long answer
APART = 20  # one exchange in so many words is a mistake
MOVABLE = 4  # shorter sentences are the items of a list, whose order counts
ENDINGS = frozenset(("s", "t", "d", "ll", "re", "ve"))  # of "Ann's" and "don't"
FEW = 60  # sentences that are looked for within others

Exchange = tuple[str, str]


def reordered(
    one: list[Words], other: list[Words], free: Counter[str]
) -> tuple[int, list[Exchange]] | None:
    """Return how many sentences have moved, and which neighbors are exchanged.

    `free` are the words that only the other text has, and that may be left out. Returns
    None if anything else has moved: both ends of "from A to B", or a line of a program.
    """
    exchanges = walk(_flat(one), _flat(other), free.copy())
    if exchanges is not None:
        return 0, exchanges
    if len(one) == len(other) == 1:
        return None
    common = Counter(one) & Counter(other)
    (same, one), (again, other) = _parted(one, common), _parted(other, common)
    places = [(a, b) for a, b in zip(same, again, strict=True) if a != b]
    if sum(len(words) - MOVABLE for words, _ in places) < 0:
        return None
    moved = len(places)
    if len(one) + len(other) <= FEW:
        one, other = list(one), list(other)
        moved += _take_inner(one, other) + _take_inner(other, one)
    exchanges = walk(_flat(one), _flat(other), free.copy())
    return None if exchanges is None else (moved, exchanges)


def walk(one: Words, other: Words, free: Counter[str]) -> list[Exchange] | None:
    """Return the neighbors that are exchanged, or None if the texts differ otherwise.

    Two words may also be written together.
    """
    exchanges = []
    i = j = same_start(one, other)
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            i, j = i + 1, j + 1
        elif size := _exchanged(one[i : i + 4], other[j : j + 4]):
            exchanges.append((one[i], other[j]))
            i, j = i + size, j + size
        elif free[other[j]] > 0:
            free[other[j]] -= 1
            j += 1
        elif one[i] == "".join(other[j : j + 2]):
            i, j = i + 1, j + 2
        elif "".join(one[i : i + 2]) == other[j]:
            i, j = i + 2, j + 1
        else:
            return None
    rest = j < len(other) and Counter(other[j:]) - free
    return exchanges if i == len(one) and not rest else None


def _exchanged(one: Words, other: Words) -> int:
    """Return how many words two neighbors have that are exchanged at the start, or 0.

    A neighbor is a word, or a word with an ending: "Ann's".
    """
    for first, second in ((1, 1), (2, 1), (1, 2), (2, 2)):
        size = first + second
        parts = one[:first], one[first:size]
        whole = all(len(part) < 2 or part[1] in ENDINGS for part in parts)
        if whole and len(one) >= size and parts[1] + parts[0] == other[:size]:
            return size
    return 0


def harmless(
    exchanges: list[Exchange],
    one: Text,
    other: Text,
    typos: dict[str, str],
    answered: int,
) -> bool:
    """Return whether exchanged neighbors are mistakes, and no other statement.

    They are if a text is long for what is exchanged, and nothing but a space is between
    the words: "age, size" is a list. A question may be shorter if it is `answered` by
    the same words, as many as these. Exchanged words of a program are an error.
    """
    least = FEWEST if answered >= LONG else SHORTEST
    short = least if answered >= LONG else CODE if one.code else SHORT
    size = len(one.words)
    if exchanges and (size < least or len(exchanges) > 1 + size // APART):
        return False
    for a, b in exchanges:
        if not (a + b).isascii() or not (a + b).isalpha():
            return False
        content = a not in FILLERS and b not in FILLERS
        if content and {a, b} <= one.names & other.names:
            return False
        if size < (LONG if {a, b} & SCOPE else short if content else least):
            return False
        first, second = (
            [word, *(by for by, right in typos.items() if right == word)]
            for word in (a, b)
        )
        if not one.has_side_by_side(first, second):
            return False
        if not other.has_side_by_side(second, first):
            return False
    return True


def _flat(sentences: list[Words]) -> Words:
    return tuple(itertools.chain.from_iterable(sentences))


def _parted(
    sentences: list[Words], common: Counter[Words]
) -> tuple[list[Words], list[Words]]:
    """Return the sentences that are in `common`, and the others."""
    free, inside, rest = common.copy(), [], []
    for words in sentences:
        if free[words] > 0:
            free[words] -= 1
            inside.append(words)
        else:
            rest.append(words)
    return inside, rest


def _take_inner(one: list[Words], other: list[Words]) -> int:
    """Remove sentences that are part of another one without a stop; count them."""
    taken = 0
    for words in sorted(one, key=len, reverse=True):
        if len(words) < MOVABLE:
            break
        for k, longer in enumerate(other):
            at = _place(words, longer)
            if at is not None:
                rest = longer[:at], longer[at + len(words) :]
                other[k : k + 1] = filter(None, rest)
                one.remove(words)
                taken += 1
                break
    return taken


def _place(words: Words, longer: Words) -> int | None:
    """Return where some words begin within others."""
    for at in range(len(longer) - len(words) + 1):
        if longer[at] == words[0] and longer[at : at + len(words)] == words:
            return at
    return None
