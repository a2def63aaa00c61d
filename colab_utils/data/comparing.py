"""Whether two rows repeat each other, judged by the words in which they differ."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import NamedTuple

from colab_utils.data.typos import ARTICLES, FILLERS, PHRASES, is_typo
from colab_utils.data.words import WORD

SIGNED = frozenset(("regards", "sincerely", "cheers", "thanks", "yours", "dear", "hi"))
LONG = 8  # words that two rows must share at least, to say that they are about the same
SENTENCE = re.compile(r"[.!?:;]+(?=\s|$)|\n+")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
BULLET = re.compile(r"^[ \t]*[-*+>#•]+(?=\s)", re.MULTILINE)
DASHES = re.compile("[\u2010-\u2015\u2212]")
OPERATORS = frozenset("+-*/<>=%^&|")

Words = tuple[str, ...]


class Slot(NamedTuple):
    """The single word in which two rows differ; `frame` stands for all other words."""

    frame: int
    one: str
    other: str


class Text:
    """A prompt or an answer: its sentences in words, its names and its operators."""

    def __init__(self, text: str) -> None:
        """Cut a text into sentences."""
        if not text.isascii():
            text = DASHES.sub("-", unicodedata.normalize("NFKC", text))
        text = THOUSANDS.sub("", BULLET.sub("", text))
        self.sentences: list[Words] = []
        self.names: set[str] = set()
        for part in SENTENCE.split(text):
            words = WORD.findall(part)
            if words:
                self.sentences.append(tuple(word.casefold() for word in words))
                self.names.update(w.casefold() for w in words[1:] if w[0].isupper())
        self.words = [word for words in self.sentences for word in words]
        if 2 * len(self.names) > len(set(self.words)):
            self.names.clear()  # all is in capitals
        self.operators = Counter(filter(OPERATORS.__contains__, text))
        self.signs = "" if self.words else "".join(text.split())


@dataclass
class Difference:
    """In what two texts differ."""

    edits: int = 0  # typos, fillers and moved words
    replaced: set[tuple[str, str]] = field(default_factory=set)  # typos, or the one word
    added: int = 0  # the words of sentences that only one text has
    shared: int = 0  # the words that both have
    repeats: bool = True  # the texts may repeat each other


class Comparer:
    """Compares rows; `count` returns how many rows have a word."""

    def __init__(self, count: Callable[[str], int]) -> None:
        """Start without texts."""
        self._count = count
        self._texts: dict[str, Text] = {}

    def forget(self) -> None:
        """Forget the texts of earlier comparisons, to free memory."""
        self._texts.clear()

    def compare(
        self, one: tuple[str, str], other: tuple[str, str]
    ) -> tuple[float, Slot | None]:
        """Return how similar two rows are, from 0 to 1, and their only difference.

        It is the share of words that need no edit: no typo, no word moved, left out or
        added. It is 0 if a number, a name, or any other word differs.
        """
        pairs = [(self._text(a), self._text(b)) for a, b in zip(one, other, strict=True)]
        both = [self._difference(a, b) for a, b in pairs]
        replaced = both[0].replaced | both[1].replaced
        slot = None
        if len(replaced) == 1:
            word, by = next(iter(replaced))
            words = [w for text, _ in pairs for w in text.words if w != word]
            if both[0].edits + both[1].edits <= 1 or not all(d.repeats for d in both):
                slot = Slot(hash(tuple(sorted(words))), word, by)
        if not all(d.repeats for d in both):
            return 0.0, slot
        for text, rest in (both, both[::-1]):
            # A sentence more is a repeat only if all else says so.
            if text.added and (text.added > 0.3 * text.shared or rest.shared < LONG):
                return 0.0, slot
        words = sum(max(len(a.words), len(b.words)) for a, b in pairs)
        edits = sum(difference.edits for difference in both)
        return 1 - edits / max(words, 1), slot

    def _text(self, text: str) -> Text:
        if text not in self._texts:
            self._texts[text] = Text(text)
        return self._texts[text]

    def _difference(self, one: Text, other: Text) -> Difference:
        found = Difference(shared=sum((Counter(one.words) & Counter(other.words)).values()))
        more, less = one.operators - other.operators, other.operators - one.operators
        if (more and less) or (one.signs and other.signs and one.signs != other.signs):
            found.repeats = False
            return found
        if one.words == other.words:
            return found
        left, right = _without_common(one.sentences, other.sentences)
        right = _in_order_of(left, right)
        a, b = _flat(left), _flat(right)
        missing, extra = Counter(a) - Counter(b), Counter(b) - Counter(a)
        typos = self._typos(one, other, missing, extra)
        found.edits = len(typos)
        found.replaced = set(typos)
        missing -= Counter(word for word, _ in typos)
        extra -= Counter(word for _, word in typos)
        found.edits += _rejoin(missing, extra)
        found.edits += _drop_articles(missing, extra)
        if missing and extra:
            found.repeats = False
            found.replaced = (
                {(next(iter(missing)), next(iter(extra)))}
                if len(missing) == len(extra) == 1 and not typos
                else set()
            )
            return found
        rest, sentences = (missing, left) if missing else (extra, right)
        found.repeats = self._is_addition(rest, sentences, found)
        right_form = {word: by for by, word in typos}
        a = [w for w in a if w not in missing]
        b = [right_form.get(w, w) for w in b if w not in extra]
        moved = _moved(a, b)
        found.edits += len(moved)
        fixed = {w for w in a if w[0].isdigit()} | one.names & other.names
        sentences = one.sentences + other.sentences
        alone = {words[0] for words in sentences if len(words) == 1}
        if [w for w in a if w in fixed] != [w for w in b if w in fixed]:
            # A sentence may move, but a number or a name may not move by itself.
            by_itself = [
                words
                for words in moved
                if (len(words) < 3 or fixed > set(words)) and words not in sentences
            ]
            found.repeats &= not (fixed - alone) & set(_flat(by_itself))
        return found

    def _typos(
        self, one: Text, other: Text, missing: Counter[str], extra: Counter[str]
    ) -> list[tuple[str, str]]:
        """Return the words that only one text has, with what the other has instead."""
        typos, free = [], +extra
        if len(missing) > 40 or len(extra) > 40:
            return []
        counts = Counter(one.words), Counter(other.words)
        for word, times in missing.items():
            for by, again in list(free.items()):
                name = bool({word, by} & (one.names | other.names))
                twice = counts[0][by] > 0 or counts[1][word] > 0
                if not times or (times > 1 and again > 1 and not twice):
                    continue  # replaced everywhere: on purpose
                if is_typo(word, by, self._count, name=name, twice=twice):
                    changed = min(times, again)
                    typos += [(word, by)] * changed
                    free[by] -= changed
                    times -= changed
        return typos

    def _is_addition(
        self, rest: Counter[str], sentences: list[Words], found: Difference
    ) -> bool:
        """Return whether the words that only one text has may be left out."""
        if not rest:
            return True
        if any(word[0].isdigit() for word in rest):
            return False
        unknown = [word for word in rest if word not in PHRASES]
        ends = _flat(sentences)
        count = sum(rest.values())
        if FILLERS.issuperset(rest):
            found.edits += count
            return True
        outside = any(Counter(ends[s]) == rest for s in (slice(count), slice(-count, None)))
        whole = [s for s in sentences if all(word in rest or word in FILLERS for word in s)]
        outside |= not rest - Counter(_flat(whole))
        if not outside:
            return False
        if not unknown or (len(unknown) <= 2 and SIGNED & set(rest)):
            return True
        if rest - Counter(_flat(whole)):
            return False
        found.added = count
        return True


def _flat(sentences: Iterable[Words]) -> list[str]:
    return [word for words in sentences for word in words]


def _without_common(
    left: list[Words], right: list[Words]
) -> tuple[list[Words], list[Words]]:
    """Leave out the sentences that both lists have."""
    common = Counter(left) & Counter(right)
    out = []
    for sentences in (left, right):
        rest = Counter(common)
        kept = []
        for words in sentences:
            if rest[words]:
                rest[words] -= 1
            else:
                kept.append(words)
        out.append(kept)
    return out[0], out[1]


def _in_order_of(left: list[Words], right: list[Words]) -> list[Words]:
    """Return the right sentences in the order of those left ones that are similar."""
    if not 1 < len(right) <= 20 or len(left) != len(right):
        return right
    free, out = [(set(words), words) for words in right], []
    for words in left:
        best = max(free, key=lambda item: len(item[0] & set(words)))
        free.remove(best)
        out.append(best[1])
    return out


def _rejoin(missing: Counter[str], extra: Counter[str]) -> int:
    """Remove words that one text writes together and the other apart; count them."""
    edits = 0
    for whole, parts in ((missing, extra), (extra, missing)):
        for word in list(whole):
            for part in list(parts):
                end = word.removeprefix(part)
                if end in parts and end != word and not word.isdigit():
                    for counter, key in ((whole, word), (parts, part), (parts, end)):
                        counter[key] -= 1
                        counter += Counter()
                    edits += 1
                    break
    return edits


def _drop_articles(missing: Counter[str], extra: Counter[str]) -> int:
    """Remove the articles that stand in place of others; return how many."""
    if not (ARTICLES & set(missing) and ARTICLES & set(extra)):
        return 0
    return sum(words.pop(word, 0) for words in (missing, extra) for word in ARTICLES)


def _moved(one: list[str], other: list[str]) -> list[Words]:
    """Return the runs of words that stand at another place."""
    if one == other:
        return []
    steps = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    gone = [tuple(one[i:j]) for step, i, j, _, _ in steps if step != "equal" and i < j]
    came = [tuple(other[i:j]) for step, _, _, i, j in steps if step != "equal" and i < j]
    return max(gone, came, key=len)
