"""A text as sentences of words, with its names and its operators."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from colab_utils.data.repeats.words import WORD

SENTENCE = re.compile(r"[.!?:;]+(?=\s|$)|\n+")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
BULLET = re.compile(r"^[ \t]*[-*+>#•]+(?=\s)", re.MULTILINE)
DASHES = re.compile("[\u2010-\u2015\u2212]")
OPERATOR = re.compile(r"[-+*/<>=%^&|]")

Words = tuple[str, ...]


class Text:
    """A prompt or an answer: its sentences in words, its names and its operators."""

    def __init__(self, text: str) -> None:
        """Cut a text into sentences."""
        if not text.isascii():
            text = DASHES.sub("-", unicodedata.normalize("NFKC", text))
        text = BULLET.sub("", text)
        if "," in text:
            text = THOUSANDS.sub("", text)
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
        self.operators = Counter(OPERATOR.findall(text))
        self.signs = "" if self.words else "".join(text.split())
