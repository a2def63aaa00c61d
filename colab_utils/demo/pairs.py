"""Pairs of answers about the demo world, of which we know the better one."""

from __future__ import annotations

import random
from collections.abc import Callable

from colab_utils import demo
from colab_utils.demo.sentences import SENTENCES

Question = dict[str, str]
Length = Callable[[str], int]  # such as the tokens of a text
KINDS = ("short", "right", "right, long")


def pair(
    row: Question, kind: str, draw: random.Random, length: Length = len
) -> Question:
    """Return a preference for a question: "prompt", "chosen" and "rejected".

    Its category is the kind. "short": the correct answer alone, over one with an
    unasked sentence. "right": the correct answer over a wrong one, of the same length
    if there is one. "right, long": the same, with an unasked sentence in both.
    """
    right, other = row["answer"], wrong(row, draw, length)
    more = unasked(row, draw)
    better, worse = {
        "short": (right, right + more),
        "right": (right, other),
        "right, long": (right + more, other + more),
    }[kind]
    found = {"prompt": row["question"], "chosen": better, "rejected": worse}
    return {**found, "group": row["group"], "category": kind}


def imperfect(
    row: Question,
    draw: random.Random,
    length: Length = len,
    wrongs: float = 0.2,
    longs: float = 0.7,
) -> Question:
    """Return a question whose answer may be wrong, and may have an unasked sentence.

    `wrongs` and `longs` are the shares of such answers.
    """
    answer = wrong(row, draw, length) if draw.random() < wrongs else row["answer"]
    return {**row, "answer": answer + unasked(row, draw) * (draw.random() < longs)}


def wrong(row: Question, draw: random.Random, length: Length = len) -> str:
    """Return the value of another country, of the same length if there is one."""
    right = row["answer"]
    values = sorted({fact[row["category"]] for fact in demo.facts()} - {right})
    same = [value for value in values if length(value) == length(right)]
    return draw.choice(same or values)


def unasked(row: Question, draw: random.Random) -> str:
    """Return a sentence, to add to an answer, about another fact of the country."""
    about = draw.choice([one for one in demo.ATTRIBUTES if one != row["category"]])
    (fact,) = (fact for fact in demo.facts() if fact["country"] == row["group"])
    return f". {SENTENCES[about][0].format(**fact)}"
