"""A text as sentences of words and signs, with its names."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from colab_utils.data.repeats.marks import BRACKET, SIGN
from colab_utils.data.repeats.words import WORD

SENTENCE = re.compile(r"[.!?:;]+(?=\s|$)|\n+")
# The signs that end a sentence. The search is three times as fast as with one of three
# alternatives, because all matches begin with one set of characters.
ENDS = re.compile(
    r"([.!?:;\n](?:(?<=\n)\n*|(?:(?<=[.!?])[.!?]*|(?<=[:;])[:;]*)(?=\s|$)))"
)
CLASSES = frozenset(("\\D", "\\W", "\\S", "\\B"))  # not \d, \w, \s, \b
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
DASHES = re.compile("[\u2010-\u2015\u2212]")
CODE = re.compile(r"[=<>{}\[\];|\\~]")
CALL = re.compile(r"(?<=\w)\(|[-+*/^%]\s*\(|\)\s*[-+*/^%]")
FIRST, LAST = re.compile(r"\w+"), re.compile(r"\w+\Z")
OWNER = re.compile(r"'\w+\Z")  # the end of "Ann's"
QUOTES = str.maketrans("‘’“”", "''\"\"")
PLAIN = re.compile(rf"\w+(?:[+#]+(?!\w))?|(?=[^\w\s]){SIGN}", re.ASCII)
PLAIN_CODE = re.compile(rf"{PLAIN.pattern}|{BRACKET}", re.ASCII)
# What begins a sign of PLAIN in a text that is no program. Without it, the words are
# found twice as fast.
SIGNED = re.compile(r"[-+#!*/%&^@$.](?:(?<![.!])|(?=\w))", re.ASCII)
WORDS = re.compile(r"\w+", re.ASCII)
ANY = re.compile(rf"{WORD.pattern}|(?=[^\w\s]){SIGN}")
ANY_CODE = re.compile(rf"{ANY.pattern}|{BRACKET}")

Words = tuple[str, ...]


class Text:
    """A prompt or an answer as words; an operator or a currency is a word, too.

    So are the brackets and quotation marks of a program. `sentences` end at any stop,
    colon or new line, and `ends` are the numbers of words before a full stop.
    """

    def __init__(self, text: str) -> None:
        """Cut a text into sentences and words."""
        ascii, code = text.isascii(), _is_code(text)
        if not ascii:
            text = unicodedata.normalize("NFKC", text).translate(QUOTES)
            text = DASHES.sub("-", text)
        if "," in text:
            text = THOUSANDS.sub("", text)
        self.text, self.code = text, code
        if not ascii:
            find = ANY_CODE if code else ANY
        elif code:
            find = PLAIN_CODE
        else:
            find = PLAIN if SIGNED.search(text) else WORDS
        self.sentences: list[Words] = []
        self.words: list[str] = []
        self.ends: list[int] = []
        self.cased: list[str] = []
        names: set[str] = set()
        parts = ENDS.split(text)
        for part, end in zip(parts[::2], [*parts[1::2], "."], strict=True):
            if words := find.findall(part):
                lower = _lower(words)
                self.sentences.append(tuple(lower))
                self.words += lower
                self.cased += words
                if words != lower:
                    names.update(w.casefold() for w in words[1:] if w[0].isupper())
            if end[0] in ".!?":
                self.ends.append(len(self.words))
        self.vocabulary = frozenset(self.words)
        # A text that is mostly in capitals has no names that can be told from others.
        capitals = code or 2 * len(names) > len(self.vocabulary)
        self.names = set() if capitals else names
        self.signs = "" if self.words else "".join(text.split())

    @cached_property
    def prose(self) -> list[Words]:
        """Return the sentences that end with a full stop."""
        starts = [0, *self.ends]
        return [
            tuple(self.words[start:end])
            for start, end in zip(starts, self.ends, strict=False)
            if start < end
        ]

    @cached_property
    def _spaced(self) -> str:
        return " ".join(["", *self.text.casefold().split(), ""])

    def has_side_by_side(self, one: list[str], other: list[str]) -> bool:
        """Return whether one of some words stands before one of others.

        There is nothing but spaces between them.
        """
        text = self._spaced
        for word in other:
            at = text.find(f" {word}", 1)
            while at > 0:
                first = FIRST.match(text, at + 1)
                if first and first[0] == word:
                    left = text[text.rfind(" ", 0, at) + 1 : at]
                    ends = LAST.findall(left) + LAST.findall(OWNER.sub("", left))
                    if not set(ends).isdisjoint(one):
                        return True
                at = text.find(f" {word}", at + 1)
        return False


def _is_code(text: str) -> bool:
    """Return whether a text has signs of a program or of a formula."""
    if CODE.search(text):
        return True
    return ("(" in text or ")" in text) and CALL.search(text) is not None


def _lower(words: list[str]) -> list[str]:
    """Return the words in lower case, except for classes of a regular expression."""
    joined = " ".join(words)
    folded = joined.casefold()
    if folded == joined:
        return words
    lower = folded.split(" ")
    if "\\" not in joined:
        return lower
    return [a if a in CLASSES else b for a, b in zip(words, lower, strict=True)]
