"""Rules that read all rows first, and reject rows that differ from most of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from colab_utils.data.curation.quality import TextRule
from colab_utils.data.repeats.words import normalize
from colab_utils.data.schema import Row, answer_of, escape, prompt_of

PLAIN = "plain text"
LONG = 8  # words from which a line is expected to be a sentence
USUAL = 0.8  # share of such lines that end a sentence, if sentences are usual
MOST = 0.5  # share of the rows from which a format is the usual one
OPEN_ENDED = re.compile(
    r"(?:[a-z],|\b(?:and|or|but|the|a|an|of|to|with|for|because|which))$", re.I
)
CODE = re.compile(r"[=_;{}<>$#|\\]|\w\(|\)$")
PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|absolutely)[,!.:]"
    r"|(?:the|my) (?:final |correct )?answer (?:to [^.:]{1,80} )?is\b"
    r"|(?:final )?(?:answer|response|output|result)\s*:"
    r"|here(?: is|'s|’s| are) (?:the|your|an?|my|some)\b",
    re.I,
)


@dataclass(frozen=True)
class Truncation(TextRule):
    """Reject long answers that end in the middle of a sentence.

    The last line of an answer is judged if it has at least 8 words and is not code. It
    is rejected if it ends with a comma or with a word such as "and", or with a letter
    after an open bracket. If `sentences` is true, it is rejected if it ends with any
    letter.
    """

    sentences: bool = True

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Truncation:
        """Return the rule for these rows: do 80 % of such lines end a sentence?"""
        lines = filter(None, (_last_line(answer_of(row)) for row in rows))
        ends = [not line[-1].isalpha() for line in lines]
        return cls(sentences=bool(ends) and sum(ends) >= USUAL * len(ends))

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return how the answer ends if it is truncated."""
        line = _last_line(answer)
        if not line:
            return None
        end = repr(escape(line[-20:]))
        if OPEN_ENDED.search(line):
            return f"truncation: ends with {end}"
        if not line[-1].isalpha():
            return None
        if sum(map(line.count, "([{")) > sum(map(line.count, ")]}")):
            return f"truncation: a bracket is open, and the end is {end}"
        if self.sentences:
            return f"truncation: ends with {end}, and most end a sentence"
        return None


def _last_line(answer: str) -> str:
    """Return the last line if it is a line of prose with at least 8 words, else ""."""
    line = answer.rstrip().rpartition("\n")[2]
    if line.count(" ") < LONG - 1 or CODE.search(line):
        return ""
    return line if len(line.split()) >= LONG else ""


@dataclass(frozen=True)
class Formats(TextRule):
    """Reject answers in another format than the usual one, which most rows have.

    The formats are: plain text, JSON, capitals, and an opening phrase such as "The
    answer is". If no format has half of the rows, `usual` is "" and all rows are kept.
    """

    usual: str = PLAIN

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Formats:
        """Return the rule for the format that at least half of these rows have."""
        counts = Counter(format_of(answer_of(row)) for row in rows)
        best, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
        return cls(best if count >= MOST * counts.total() else "")

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the format of the answer if it is another one."""
        found = format_of(answer)
        if not self.usual or found == self.usual:
            return None
        return f"format: {found}, most answers are {self.usual}"


def format_of(answer: str) -> str:
    """Return the format: "JSON", "capitals", "opening phrase" or "plain text"."""
    text = answer.strip()
    if text[:1] in ("{", "[") and text[-1:] in ("}", "]"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return PLAIN
        return "JSON"
    if PREAMBLE.match(text):
        return "opening phrase"
    if text.isupper() and sum(map(str.isalpha, text)) >= 4:
        return "capitals"
    return PLAIN


def prompt_key(row: Row) -> str:
    """Return the words of the prompt in lower case."""
    return normalize(prompt_of(row))


@dataclass(frozen=True)
class Disagreement:
    """Reject rows that ask the same and answer other than the majority.

    `key` says which rows ask the same. If no answer has more votes than every other,
    none of these rows can be trusted, and all are rejected. Answers are compared in
    lower case and without punctuation. A question that is asked once is kept.
    """

    key: Callable[[Row], object] = prompt_key
    majority: dict[object, str | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, rows: Iterable[Row], key: Callable[[Row], object] = prompt_key
    ) -> Disagreement:
        """Return the rule after counting the answers of these rows."""
        votes: dict[object, Counter[str]] = {}
        for row in rows:
            votes.setdefault(key(row), Counter())[normalize(answer_of(row))] += 1
        return cls(key, {name: _winner(counts) for name, counts in votes.items()})

    def __call__(self, row: Row) -> str | None:
        """Return the reason to reject the row, or None."""
        name = self.key(row)
        if name not in self.majority:
            return None
        best = self.majority[name]
        if best is None:
            return "disagreement: the rows that ask the same have tied answers"
        if normalize(answer_of(row)) == best:
            return None
        return f"disagreement: rows that ask the same mostly answer {best[:40]!r}"


def _winner(counts: Counter[str]) -> str | None:
    """Return the answer with more votes than every other, or None if there is none."""
    (best, most), *others = counts.most_common(2)
    return None if others and others[0][1] == most else best
