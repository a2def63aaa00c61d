"""Filters: rules that say in words why a row is rejected.

A rule is a function of a row: it returns the reason, such as "refusal: as an AI, I", or
None if it keeps the row. A reason begins with the rule's name. The rules without a
parameter stand at the end of this module. `dataset_rules` has those that look at all
rows first, and `patterns` what the rules look for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from colab_utils.data.curation import patterns
from colab_utils.data.schema import (
    INSTRUCTION,
    PREFERENCE,
    Rejected,
    Row,
    answer_of,
    kind_of,
    prompt_of,
    reject_row,
)

Rule = Callable[[Row], str | None]


class TextRule:
    """A rule that judges the text before the last answer, and that answer.

    It is a rule like any other. Several of them share the work of reading a row.
    """

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the reason to reject a row with this prompt and answer, or None."""
        raise NotImplementedError

    def __call__(self, row: Row) -> str | None:
        """Return the reason to reject the row, or None."""
        return self.judge(prompt_of(row), answer_of(row))


def filter_rows(
    rows: Iterable[Row], rules: Sequence[Rule]
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those that all rules keep and those that a rule rejects.

    The first rule that rejects a row gives the reason.
    """
    kept, rejected = [], []
    judges = _judges(rules)
    for row in rows:
        if reason := _first_reason(row, judges):
            rejected.append(reject_row(row, reason))
        else:
            kept.append(row)
    return kept, rejected


def first_reason(row: Row, rules: Sequence[Rule]) -> str | None:
    """Return the reason of the first rule that rejects the row, or None."""
    return _first_reason(row, _judges(rules))


Judge = Callable[[str, str], str | None]


def _judges(rules: Sequence[Rule]) -> list[tuple[Judge | None, Rule]]:
    """Return each rule with its method `judge` if it has one."""
    return [(r.judge if isinstance(r, TextRule) else None, r) for r in rules]


def _first_reason(row: Row, judges: Sequence[tuple[Judge | None, Rule]]) -> str | None:
    prompt, answer = prompt_of(row), answer_of(row)
    for judge, rule in judges:
        reason = judge(prompt, answer) if judge else rule(row)
        if reason:
            return reason
    return None


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return how many rows each rule rejected, the most frequent rule first."""
    names = Counter(one.reason.partition(":")[0] for one in rejected)
    return dict(names.most_common())


@dataclass(frozen=True)
class Words(TextRule):
    """Reject answers with fewer than `least` or more than `most` words.

    Words are separated by spaces, so it does not suit Chinese or Japanese.
    """

    least: int = 1
    most: int = 10**9

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the number of words if it is out of bounds."""
        count = len(answer.split())
        if self.least <= count <= self.most:
            return None
        return f"words: {count}, allowed are {self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Language(TextRule):
    """Reject answers in another language than `code`: de, en, es, fr, it, nl, pt.

    A language is recognized by its most frequent words, and a foreign script by its
    letters. An answer is rejected only if it has at least 3 different words that are
    frequent in another language, and more of them than of this one. So names, code
    and short answers are kept. Raises ValueError for an unknown code.
    """

    code: str

    def __post_init__(self) -> None:
        """Check the code."""
        if self.code not in patterns.FREQUENT_WORDS:
            known = ", ".join(patterns.FREQUENT_WORDS)
            raise ValueError(f"Language is {self.code!r}; it can be one of {known}.")

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the language of the answer if it is another one."""
        if not answer.isascii():
            letters = [sign for sign in answer if sign.isalpha()]
            foreign = sum(sign > "\u024f" for sign in letters)
            if foreign > len(letters) / 2:
                return "language: most letters are not Latin"
        words = set(answer.casefold().split())
        if len(words) < 5:
            return None
        counts = {
            code: len(words & frequent)
            for code, frequent in patterns.FREQUENT_WORDS.items()
        }
        best = max(counts, key=counts.__getitem__)
        if counts[best] >= 3 and counts[best] > counts[self.code]:
            return f"language: {best} ({counts[best]} of its most frequent words)"
        return None


class WordList(TextRule):
    """Reject rows with one of these words or phrases, in any case, as whole words."""

    def __init__(self, words: Iterable[str]) -> None:
        """Take a list of your choice: words, or phrases of several words."""
        split = [tuple(patterns.WORDS.findall(word.casefold())) for word in words]
        self.words = frozenset(found[0] for found in split if len(found) == 1)
        phrases = [r"\s+".join(map(re.escape, one)) for one in split if len(one) > 1]
        self.phrases = re.compile(rf"\b(?:{'|'.join(phrases)})\b") if phrases else None
        self.count = len(self.words) + len(phrases)

    def __repr__(self) -> str:
        """Return the number of words; the list itself may be long or unpleasant."""
        return f"WordList({self.count} words)"

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the first word of the list that the prompt or the answer has."""
        text = f"{prompt}\n{answer}".casefold()
        hits = self.words.intersection(patterns.WORDS.findall(text))
        if hits:
            return f"word list: {min(hits)}"
        found = self.phrases.search(text) if self.phrases else None
        return f"word list: {' '.join(found[0].split())}" if found else None


class Check(TextRule):
    """A rule without parameters, made from a function of the prompt and the answer."""

    def __init__(self, find: Callable[[str, str], str | None]) -> None:
        """Take the name and the documentation of the function."""
        self.find = find
        self.name = find.__name__.replace("_", " ")
        self.__doc__ = find.__doc__

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the name of the rule and what the function found, or None."""
        found = self.find(prompt, answer)
        return f"{self.name}: {found}" if found else None

    def __repr__(self) -> str:
        """Return the name."""
        return self.name

    def __reduce__(self) -> str:
        """Pickle the rule by its name in this module."""
        return self.find.__name__


def echo(row: Row) -> str | None:
    """Reject an answer that only repeats the last message before it.

    An answer that changes case or punctuation is kept: that may be its task.
    """
    kind = kind_of(row)
    if kind not in (INSTRUCTION, PREFERENCE):
        return None
    turns = row["messages"][:-1] if kind == INSTRUCTION else row["prompt"]
    asked = (turns[-1].get("content") or "").strip() if turns else ""
    answer = answer_of(row).strip()
    if asked[:1] == answer[:1] and asked and asked.split() == answer.split():
        return "echo: the answer repeats the question"
    return None


@Check
def refusal(_: str, answer: str) -> str | None:
    """Reject an answer that refuses, or that speaks of itself as an AI."""
    text = answer.casefold()
    for word in patterns.REFUSAL_HINTS:
        if word in text:
            found = patterns.REFUSAL.search(answer)
            return found[0] if found else None
    return None


@Check
def repetition(_: str, answer: str) -> str | None:
    """Reject an answer in which a phrase or most lines are repeated."""
    words = answer.split()
    if len(words) < 5 or len(set(words)) > 0.7 * len(words):
        return None  # saves time: few words occur twice
    if found := patterns.repeated_run(words):
        return f"{' '.join(found)[:40]!r} at least {patterns.RUN} times in a row"
    lines = [line.strip() for line in answer.splitlines() if len(line.split()) >= 3]
    if len(lines) >= 4:
        again = 1 - sum(map(len, set(lines))) / sum(map(len, lines))
        if again > patterns.REPEATED_LINES:
            return f"{again:.0%} of the text are repeated lines"
    return None


@Check
def code_fences(_: str, answer: str) -> str | None:
    """Reject an answer in which a block of code is opened and not closed."""
    if "```" not in answer:
        return None
    count = len(re.findall(r"^ *```", answer, re.M))
    return f"{count} marks ```, one is not closed" if count % 2 else None


@Check
def damage(prompt: str, answer: str) -> str | None:
    """Reject a text with control characters or wrongly decoded letters."""
    for text in (answer, prompt):
        found = patterns.CONTROL.search(text)
        if not found and not text.isascii():
            found = patterns.MOJIBAKE.search(text)
        if found:
            return ascii(found[0])
    return None


@Check
def urls(prompt: str, answer: str) -> str | None:
    """Reject a text with the address of a web page."""
    for text in (answer, prompt):
        if "://" in text or "www." in text.casefold():
            for found in patterns.URL.finditer(text):
                if not patterns.EXAMPLE.search(found[0]):
                    return found[0]
    return None


@Check
def personal(prompt: str, answer: str) -> str | None:
    """Reject a text with an e-mail address, or a phone, card or account number."""
    for text in (answer, prompt):
        found = patterns.personal_data(text)
        if found:
            return found
    return None
