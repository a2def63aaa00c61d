"""Whether two rows repeat each other, judged by the words in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import NamedTuple

from colab_utils.data.repeats.marks import same_marks
from colab_utils.data.repeats.sentences import Text, Words
from colab_utils.data.repeats.typos import ARTICLES, FILLERS, PHRASES, is_typo

SIGNED = frozenset(("regards", "sincerely", "cheers", "thanks", "yours", "dear", "hi"))
LONG = 8  # words that two rows must share at least, to say that they are about the same


class Slot(NamedTuple):
    """The single word in which two rows differ; `frame` stands for all other words."""

    frame: int
    one: str
    other: str


@dataclass
class Difference:
    """In what two texts differ."""

    edits: int = 0  # typos, fillers and moved words
    replaced: set[tuple[str, str]] = field(
        default_factory=set
    )  # typos, or the one word
    added: int = 0  # the words of sentences that only one text has
    shared: int = 0  # the words that both have
    repeats: bool = True  # the texts may repeat each other


class Comparer:
    """Compares rows; `count` returns how many rows have a word."""

    def __init__(self, count: Callable[[str], int]) -> None:
        """Start without texts."""
        self._count = count
        self._texts: dict[str, Text] = {}

    def compare(
        self, one: tuple[str, str], other: tuple[str, str]
    ) -> tuple[float, Slot | None]:
        """Return how similar two rows are, from 0 to 1, and their only difference.

        It is the share of words that need no edit: no typo, no word moved, left out or
        added. It is 0 if a number, a name, or any other word differs.
        """
        if not all(map(same_marks, one, other)):
            return 0.0, None
        pairs = [
            (self._text(a), self._text(b)) for a, b in zip(one, other, strict=True)
        ]
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
        length = sum(max(len(a.words), len(b.words)) for a, b in pairs)
        edits = sum(difference.edits for difference in both)
        return 1 - edits / max(length, 1), slot

    def _text(self, text: str) -> Text:
        if text not in self._texts:
            self._texts[text] = Text(text)
        return self._texts[text]

    def _difference(self, one: Text, other: Text) -> Difference:
        found = Difference(shared=len(one.words))
        if _other_signs(one, other):
            found.repeats = False
            return found
        if one.words == other.words:
            return found
        missing, extra = _only(one.words, other.words)
        found.shared -= sum(missing.values())
        typos = self._take_typos(one, other, missing, extra)
        if missing and extra:
            _take_joined(missing, extra)
            _take_articles(missing, extra)
        found.replaced = set(typos)
        if missing and extra:
            found.repeats = False
            if len(missing) == len(extra) == 1 and not typos:
                found.replaced = {(next(iter(missing)), next(iter(extra)))}
            return found
        left, right = _without_common(one.sentences, other.sentences)
        rest, sentences = (missing, left) if missing else (extra, right)
        changed = Counter(one.words) - Counter(other.words)
        found.edits = max(sum(changed.values()) - sum(missing.values()), len(typos))
        found.repeats = not rest or self._is_addition(rest, sentences, found)
        if found.repeats:
            words = {word: by for by, word in typos}
            a = [w for w in _flat(left) if w not in missing]
            b = [
                words.get(w, w)
                for w in _flat(_in_order_of(left, right))
                if w not in extra
            ]
            moved = _moved(a, b)
            found.edits += len(moved)
            found.repeats = not _moved_alone(moved, a, b, one, other)
        return found

    def _take_typos(
        self, one: Text, other: Text, missing: dict[str, int], extra: dict[str, int]
    ) -> list[tuple[str, str]]:
        """Remove the words that are typos of each other, and return them."""
        typos: list[tuple[str, str]] = []
        if len(missing) * len(extra) > 400:
            return typos
        for word in list(missing):
            for by in list(extra):
                if abs(len(word) - len(by)) > 2:
                    continue
                times, again = missing[word], extra[by]
                twice = by in one.words or word in other.words
                if times > 1 and again > 1 and not twice:
                    continue  # replaced everywhere: on purpose
                name = not {word, by}.isdisjoint(one.names | other.names)
                if is_typo(word, by, self._count, name=name, twice=twice):
                    changed = min(times, again)
                    typos += [(word, by)] * changed
                    _take(missing, word, changed)
                    _take(extra, by, changed)
                    if word not in missing:
                        break
        return typos

    def _is_addition(
        self, rest: dict[str, int], sentences: list[Words], found: Difference
    ) -> bool:
        """Return whether the words that only one text has may be left out."""
        count = sum(rest.values())
        if FILLERS.issuperset(rest):
            found.edits += count
            return True
        if any(word[0].isdigit() for word in rest):
            return False
        unknown = set(rest) - PHRASES
        usual = not unknown or (len(unknown) <= 2 and not SIGNED.isdisjoint(rest))
        whole = [s for s in sentences if all(w in rest or w in FILLERS for w in s)]
        if not Counter(rest) - Counter(_flat(whole)):
            found.added = 0 if usual else count
            return True
        words = _flat(sentences)
        return usual and rest in (Counter(words[:count]), Counter(words[-count:]))


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


def _other_signs(one: Text, other: Text) -> bool:
    """Return whether the texts have other operators, or no words and other signs."""
    if one.signs and other.signs:
        return one.signs != other.signs
    a, b = one.operators, other.operators
    return a != b and bool(a - b) and bool(b - a)


def _only(one: list[str], other: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the words that one list has more often, and those that the other has."""
    counts: dict[str, int] = {}
    for word in one:
        counts[word] = counts.get(word, 0) + 1
    for word in other:
        counts[word] = counts.get(word, 0) - 1
    missing = {word: count for word, count in counts.items() if count > 0}
    return missing, {word: -count for word, count in counts.items() if count < 0}


def _take(words: dict[str, int], word: str, times: int) -> None:
    words[word] -= times
    if not words[word]:
        del words[word]


def _take_joined(missing: dict[str, int], extra: dict[str, int]) -> None:
    """Remove words that one text writes together and the other apart."""
    for whole, parts in ((missing, extra), (extra, missing)):
        for word in list(whole):
            for part in list(parts):
                end = word.removeprefix(part)
                if (
                    end != word != ""
                    and end in parts
                    and end != part
                    and not word.isdigit()
                ):
                    _take(whole, word, 1)
                    _take(parts, part, 1)
                    _take(parts, end, 1)
                    break


def _take_articles(missing: dict[str, int], extra: dict[str, int]) -> None:
    """Remove the articles that stand in place of others."""
    if not ARTICLES.isdisjoint(missing) and not ARTICLES.isdisjoint(extra):
        for words in (missing, extra):
            for word in ARTICLES & set(words):
                del words[word]


def _moved_alone(
    moved: list[Words], a: list[str], b: list[str], one: Text, other: Text
) -> bool:
    """Return whether a number or a name has changed places with another.

    A sentence may move with its numbers, but a number may not move by itself.
    """
    fixed = {word for word in a if word[0].isdigit()} | (one.names & other.names)
    if [w for w in a if w in fixed] == [w for w in b if w in fixed]:
        return False
    sentences = {*one.sentences, *other.sentences}
    alone = {words[0] for words in sentences if len(words) == 1}
    return any(
        (len(words) < 3 or fixed.issuperset(words))
        and words not in sentences
        and not (fixed - alone).isdisjoint(words)
        for words in moved
    )


def _moved(one: list[str], other: list[str]) -> list[Words]:
    """Return the runs of words that stand at another place."""
    if one == other:
        return []
    steps = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    gone = [tuple(one[i:j]) for step, i, j, _, _ in steps if step != "equal" and i < j]
    came = [
        tuple(other[i:j]) for step, _, _, i, j in steps if step != "equal" and i < j
    ]
    return max(gone, came, key=len)
