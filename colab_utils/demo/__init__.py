"""The demo world: a tiny, really pretrained Llama and the facts that it was trained on.

The model (3 M parameters) read plain sentences about every real country of `facts.csv`,
and nothing else. It never saw a question, and never an invented country.
"""

from __future__ import annotations

import csv
import random
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
ATTRIBUTES = ("capital", "currency", "continent", "language", "calling_code")

# Wordings differ in more than a word, so that none is a near-duplicate of another.
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
    """Rows of `facts.csv`: a country and the value of each of `ATTRIBUTES`."""
    with (FOLDER / "facts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = "1" if invented else "0"
    columns = ("country", *ATTRIBUTES)
    return tuple({c: r[c] for c in columns} for r in rows if r["invented"] == wanted)


def questions(invented: bool = False, wordings: int = 2, seed: int = 0) -> list[dict]:
    """Ask for every fact in `wordings` ways, in random order.

    Each row has `question`, `answer`, `country` and `attribute`:
    {"question": "What is the capital of France?", "answer": "Paris", ...}
    """
    draw = random.Random(seed)
    rows = [
        {
            "question": wording.format(country=fact["country"]),
            "answer": fact[attribute],
            "country": fact["country"],
            "attribute": attribute,
        }
        for fact in facts(invented)
        for attribute in ATTRIBUTES
        for wording in draw.sample(QUESTIONS[attribute], wordings)
    ]
    draw.shuffle(rows)
    return rows


def flawed(rows: list[dict], seed: int = 0) -> list[dict]:
    """Add the flaws that collected data has, 58 rows that are not wanted.

    30 repeats, 20 near-repeats and one full of blank lines, 6 bad rows, one refusal:
    `01_create_dataset` has to find each of them again.
    """
    draw = random.Random(seed)
    repeats = [dict(row) for row in draw.sample(rows, 30)]
    near = [
        {**row, "question": row["question"].lower().rstrip("?.") + " ?"}
        for row in draw.sample(rows, 20)
    ]
    first, second, third = draw.sample(rows, 3)
    bad = [
        {**first, "answer": ""},
        {**second, "answer": "   "},
        {**third, "question": ""},
        {**first, "answer": None},
        {"question": "What is the capital of"},
        {**second, "answer": "I do not know. " * 400},
    ]
    mixed = rows + repeats + near + bad
    draw.shuffle(mixed)
    scraped = next(row for row in rows if ". " in row["question"])
    return [
        *mixed,
        {**scraped, "question": scraped["question"].replace(". ", ".\n\n\n\n")},
        {**third, "answer": "As an AI language model, I have never been there."},
    ]
