"""Whether two rows repeat each other, judged by the words in which they differ."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from colab_utils.data.repeats import boilerplate, moves, typos
from colab_utils.data.repeats.boilerplate import Kind
from colab_utils.data.repeats.moves import SCOPE
from colab_utils.data.repeats.sentences import Text, Words
from colab_utils.data.repeats.words import differing, text_hash

SHARED = 8  # words that two rows share at least if one of them has a sentence more
TYPOS = 6  # in a text with fewer words, typos are judged more strictly
PROGRAM = 3  # a word of a program counts as so many words of an answer
FEW = 4  # words of a text from which an article may be missing, at least
MANY = 400  # more pairs of words than these are not looked at for typos

Pairs = list[tuple[str, str]]


class Slot(NamedTuple):
    """The single word in which two rows differ; `frame` stands for all other words."""

    frame: int
    one: str
    other: str


class Verdict(NamedTuple):
    """How similar two rows are, and what only many such pairs can decide.

    `added` stands for the sentences that only one of the rows has.
    """

    similarity: float
    slot: Slot | None = None
    added: tuple[int, ...] = ()


class Row(NamedTuple):
    """What is known of the row of a text.

    `size` counts all its words, and `others` are those of the other text. `answer`
    counts the words of the answer to a question, and is 0 for an answer itself. A word
    of a program counts more: another question rarely has the same program.
    """

    size: int
    others: frozenset[str]
    answer: int


class Rest:
    """The words that only one of two texts has, without the `typos` among them."""

    def __init__(self, one: Text, other: Text, row: Row) -> None:
        """Compare the words of two texts."""
        self.one, self.other, self.row = one, other, row
        self.missing, self.extra = differing(one.words, other.words)
        self.typos: Pairs = []  # with the right words for them

    def is_short(self) -> bool:
        """Return whether a letter may be all that the text is about."""
        few = len(self.one.words) < TYPOS and self.row.answer < moves.LONG
        return few and not (self.one.code and self.other.code)

    def alike(self) -> Pairs:
        """Return the words of which one may be the other with a typo."""
        count = len(self.missing) * len(self.extra)
        if not 0 < count <= MANY or len(self.one.words) < FEW:
            return []
        pairs = itertools.product(self.missing, self.extra)
        return [pair for pair in pairs if typos.may_be_typo(*pair)]


class Difference(NamedTuple):
    """In what two texts differ that may repeat each other."""

    typos: Sequence[tuple[str, str]] = ()
    edits: int = 0  # typos, words left out, exchanged words, moved sentences
    added: tuple[int, ...] = ()  # hashes of sentences that may be politeness


OTHER = Verdict(0.0)
SAME = Difference()


class Comparer:
    """Compares rows; `count` returns how many rows have a word."""

    def __init__(self, count: Callable[[str], int]) -> None:
        """Start without texts."""
        self._count = count
        self._texts: dict[str, Text] = {}

    def compare(self, one: tuple[str, str], other: tuple[str, str]) -> Verdict:
        """Return how similar two rows are, from 0 to 1.

        It is the share of words that need no edit: no typo, no word exchanged or left
        out. It is 0 if a number, a name, a sign or any other word differs.
        """
        pairs = [
            (self._text(a), self._text(b)) for a, b in zip(one, other, strict=True)
        ]
        missing = [a.vocabulary - b.vocabulary for a, b in pairs]
        extra = [b.vocabulary - a.vocabulary for a, b in pairs]
        if not all(map(_may_repeat, missing, extra)):
            return Verdict(0.0, _slot(pairs, missing, extra))
        size = min(len(a.words) + len(b.words) for a, b in zip(*pairs, strict=True))
        answer = min(len(t.words) * (PROGRAM if t.code else 1) for t in pairs[1])
        rests = []
        for k, (a, b) in enumerate(pairs):
            c, d = pairs[1 - k]
            row = Row(size, c.vocabulary & d.vocabulary, 0 if k else answer)
            rests.append(Rest(a, b, row))
            if a is not b:
                self._take_typos(rests[-1])
        left = (pair for rest in rests for pair in rest.alike())
        if any(rest.typos for rest in rests) or typos.are_several(left, self._count):
            # Where one typo is, a second one is likelier than another word.
            for rest in rests:
                self._take_typos(rest, again=True)
        found = []
        for rest in rests:
            difference = _difference(rest)
            if difference is None:
                return Verdict(0.0, _slot(pairs, missing, extra))
            found.append(difference)
        if not set(found[0].typos).isdisjoint(found[1].typos):
            return OTHER  # replaced in the question and in the answer: on purpose
        edits = sum(difference.edits for difference in found)
        slot = _slot(pairs, missing, extra) if edits == 1 else None
        length = sum(max(len(a.words), len(b.words)) for a, b in pairs)
        added = found[0].added + found[1].added
        return Verdict(1 - edits / max(length, 1), slot, added)

    def _text(self, text: str) -> Text:
        if text not in self._texts:
            self._texts[text] = Text(text)
        return self._texts[text]

    def _take_typos(self, rest: Rest, *, again: bool = False) -> None:
        """Move typos, with the right words for them, to `rest.typos`."""
        one, other, missing, extra = rest.one, rest.other, rest.missing, rest.extra
        names = one.names | other.names
        for word, by in rest.alike():
            if word not in missing or by not in extra:
                continue
            twice = by in one.vocabulary or word in other.vocabulary
            gone, come = missing[word], extra[by]
            if gone > 1 and come > 1 and not twice:
                continue  # replaced everywhere: on purpose
            also = (word in rest.row.others) != (by in rest.row.others)
            if typos.is_typo(
                word,
                by,
                self._count,
                name=word in names or by in names,
                twice=twice or also,
                size=0 if rest.is_short() else rest.row.size,
                again=again,
                code=one.code and other.code,
            ):
                changed = min(gone, come)
                right = by in one.vocabulary or self._count(word) < self._count(by)
                rest.typos += [(word, by) if right else (by, word)] * changed
                _take(missing, word, changed)
                _take(extra, by, changed)


def _difference(rest: Rest) -> Difference | None:
    """Return in what two texts differ; None if they do not repeat each other."""
    one, other, row, typos = rest.one, rest.other, rest.row, rest.typos
    if one.words == other.words:
        other_signs = one.signs and other.signs and one.signs != other.signs
        return None if other_signs else SAME
    missing, extra = rest.missing, rest.extra
    if missing and extra and not _take_joined(missing, extra):
        return None
    if missing:
        one, other, missing, extra = other, one, extra, missing
    parts: list[range] = []
    added: list[int] = []
    if not _is_free(extra, one, other):
        parts, extra = boilerplate.added_runs(other, extra)
        if row.size < SHARED or not _is_free(extra, one, other):
            return None
    for part in parts:
        kind = boilerplate.kind_of(other, part, row.others)
        if kind is Kind.CONTENT:
            return None
        if kind is Kind.UNKNOWN:
            added.append(text_hash(" ".join(other.words[part.start : part.stop])))
    words = dict(typos)
    left, right = _sentences(one, [], words), _sentences(other, parts, words)
    order = moves.reordered(left, right, extra)
    if order is None:
        return None
    if not moves.harmless(order[1], one, other, words, row.answer):
        return None
    edits = len(typos) + order[0] + len(order[1]) + extra.total()
    return Difference(typos, edits, tuple(added))


def _may_repeat(missing: frozenset[str], extra: frozenset[str]) -> bool:
    """Return in a quick way whether words that only one text has may be typos.

    Two words may also be written as one.
    """
    if not missing or not extra or len(missing) != len(extra):
        return True
    return any(typos.may_be_typo(a, b) for a in missing for b in extra)


def _slot(
    pairs: list[tuple[Text, Text]],
    missing: list[frozenset[str]],
    extra: list[frozenset[str]],
) -> Slot | None:
    """Return the one word in which two rows differ, if there is only one."""
    gone, come = missing[0] | missing[1], extra[0] | extra[1]
    if len(gone) != 1 or len(come) != 1:
        return None
    (word,), (by,) = gone, come
    kept = (sorted(w for w in text.words if w != word) for text, _ in pairs)
    return Slot(text_hash("\0".join(itertools.chain(*kept))), word, by)


def _is_free(words: Counter[str], one: Text, other: Text) -> bool:
    """Return whether words may be left out: articles, but not in a program."""
    if not words:
        return True
    names = one.names | other.names
    text = not other.code and min(len(one.words), len(other.words)) >= FEW
    return text and typos.FREE.issuperset(words) and names.isdisjoint(words)


def _sentences(text: Text, parts: list[range], words: dict[str, str]) -> list[Words]:
    """Return the sentences of prose without some parts, and with words replaced."""
    if not parts and words.keys().isdisjoint(text.vocabulary):
        return text.prose
    gone = {i for part in parts for i in part}
    sentences, start = [], 0
    for end in text.ends:
        kept = text.words[start:end]
        if gone:
            kept = [text.words[i] for i in range(start, end) if i not in gone]
        if not words.keys().isdisjoint(kept):
            kept = [words.get(word, word) for word in kept]
        if kept:
            sentences.append(tuple(kept))
        start = end
    return sentences


def _take(words: Counter[str], word: str, times: int) -> None:
    words[word] -= times
    if not words[word]:
        del words[word]


def _take_joined(missing: Counter[str], extra: Counter[str]) -> bool:
    """Remove words that one text writes together and the other apart.

    Returns whether only one of the texts has other words after it.
    """
    for whole, parts in ((missing, extra), (extra, missing)):
        for word in list(whole):
            for part in list(parts):
                end = word.removeprefix(part)
                both = (part, end) if end in parts and end not in (word, part) else ()
                long = all(len(w) > 2 and w.isalpha() for w in both)
                if both and long and SCOPE.isdisjoint(both):
                    _take(whole, word, 1)
                    _take(parts, part, 1)
                    _take(parts, end, 1)
                    break
    return not (missing and extra)
