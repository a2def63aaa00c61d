"""The demo world: a tiny pretrained Llama, and the facts that it was pretrained on.

The training text of the model (3 M parameters) is plain sentences about every real
country of `facts.csv`. It has no questions and no invented countries.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path

RawRow = Mapping[str, str | None]  # a flawed row may have empty cells

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
ATTRIBUTES = ("capital", "currency", "continent", "language", "calling_code")

# Two wordings differ by more than a word, so that no two questions are near-duplicates.
QUESTIONS = {
    "capital": (
        "What is the capital of {country}?",
        "Which city is the seat of government of {country}?",
        "Name the capital city of {country}.",
        "I am going to {country}. What is its capital called?",
    ),
    "currency": (
        "What is the currency of {country}?",
        "Which money do people use in {country}?",
        "Name the currency used in {country}.",
        "I am going to {country}. What will I pay with?",
    ),
    "continent": (
        "On which continent is {country}?",
        "What continent does {country} belong to?",
        "Name the continent of {country}.",
        "I am going to {country}. Which part of the world is that?",
    ),
    "language": (
        "What is the official language of {country}?",
        "Which language do people speak in {country}?",
        "Name the language of {country}.",
        "I am going to {country}. Which language should I learn?",
    ),
    "calling_code": (
        "What is the calling code of {country}?",
        "Which code do I dial to phone {country}?",
        "Name the telephone code of {country}.",
        "I want to call {country}. Which prefix do I need?",
    ),
}


@cache
def facts(invented: bool = False) -> tuple[dict[str, str], ...]:
    """Return the rows of `facts.csv`: a country and the value of each attribute.

    The countries are the real ones, or the invented ones.
    """
    with (FOLDER / "facts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    flag = "1" if invented else "0"
    columns = ("country", *ATTRIBUTES)
    return tuple({c: r[c] for c in columns} for r in rows if r["invented"] == flag)


def questions(
    invented: bool = False, wordings: int = 2, seed: int = 0
) -> list[dict[str, str]]:
    """Return `wordings` questions for every fact, in random order.

    A row's group is its country, and its category is the attribute that it asks for:
    {"question": "What is the capital of France?", "answer": "Paris",
    "group": "France", "category": "capital"}
    """
    draw = random.Random(seed)
    rows = [
        {
            "question": wording.format(country=fact["country"]),
            "answer": fact[attribute],
            "group": fact["country"],
            "category": attribute,
        }
        for fact in facts(invented)
        for attribute in ATTRIBUTES
        for wording in draw.sample(QUESTIONS[attribute], wordings)
    ]
    draw.shuffle(rows)
    return rows


def flawed(rows: list[dict[str, str]], seed: int = 0) -> list[RawRow]:
    """Return the rows and 58 flawed ones, with the flaws that collected data has.

    The 58 are 30 repeats, 20 near-duplicates, one near-duplicate with blank lines, 6
    bad rows and one refusal. `01_create_dataset` must find each of them.
    """
    draw = random.Random(seed)
    repeats = [dict(row) for row in draw.sample(rows, 30)]
    near = [
        {**row, "question": row["question"].lower().rstrip("?.") + " ?"}
        for row in draw.sample(rows, 20)
    ]
    first, second, third = draw.sample(rows, 3)
    bad: list[RawRow] = [
        {**first, "answer": ""},
        {**second, "answer": "   "},
        {**third, "question": ""},
        {**first, "answer": None},
        {"question": "What is the capital of"},
        {**second, "answer": "I do not know. " * 400},
    ]
    mixed: list[RawRow] = [*rows, *repeats, *near, *bad]
    draw.shuffle(mixed)
    scraped = next(row for row in rows if ". " in row["question"])
    return [
        *mixed,
        {**scraped, "question": scraped["question"].replace(". ", ".\n\n\n\n")},
        {**third, "answer": "As an AI language model, I have never been there."},
    ]
