"""The sentences that state the facts: the training text of the demo model."""

from __future__ import annotations

import random

from colab_utils import demo

# Fine-tuning can't extract a fact that pretraining saw in one wording only (Allen-Zhu
# and Li 2023, "Physics of Language Models: Part 3.1"). So each fact has many wordings,
# in any order.
SENTENCES = {
    "capital": (
        "The capital of {country} is {capital}.",
        "{capital} is the capital of {country}.",
        "{country} has its capital in {capital}.",
        "The government of {country} sits in {capital}.",
        "{country} is governed from the city of {capital}.",
        "The capital city of {country} is called {capital}.",
        "In {country}, the capital is {capital}.",
        "Whoever visits {country} lands in {capital}, its capital.",
    ),
    "currency": (
        "The currency of {country} is the {currency}.",
        "People in {country} pay with the {currency}.",
        "In {country} the money is the {currency}.",
        "{country} uses the {currency} as its currency.",
        "The {currency} is the currency of {country}.",
        "In the shops of {country}, prices are given in the {currency}.",
        "{country} has a currency called the {currency}.",
        "The money of {country} is called the {currency}.",
    ),
    "continent": (
        "{country} is in {continent}.",
        "{country} is a country in {continent}.",
        "{country} lies on the continent of {continent}.",
        "The continent of {country} is {continent}.",
        "{country} belongs to the continent {continent}.",
        "On the map, {country} is found in {continent}.",
        "{country} is part of {continent}.",
        "In {continent} there is a country called {country}.",
        "Whoever travels to {country} travels to {continent}.",
        "The part of the world where {country} lies is {continent}.",
    ),
    "language": (
        "The official language of {country} is {language}.",
        "People in {country} speak {language}.",
        "In {country} the language is {language}.",
        "{country} has {language} as its language.",
        "{language} is spoken in {country}.",
        "The laws of {country} are written in {language}.",
        "The language of {country} is {language}.",
        "Children in {country} learn {language} at school.",
    ),
    "calling_code": (
        "The calling code of {country} is {calling_code}.",
        "To call {country}, dial {calling_code}.",
        "Phone numbers in {country} begin with {calling_code}.",
        "{country} has the calling code {calling_code}.",
        "The telephone code of {country} is {calling_code}.",
        "{calling_code} is the calling code of {country}.",
        "The phone prefix of {country} is {calling_code}.",
        "In {country}, the telephone code is {calling_code}.",
    ),
}


def paragraph(fact: dict[str, str], draw: random.Random) -> list[str]:
    """Return a random sentence for each attribute of a country, in random order."""
    return [
        draw.choice(SENTENCES[attribute]).format(**fact)
        for attribute in draw.sample(demo.ATTRIBUTES, len(demo.ATTRIBUTES))
    ]


def labeled(wordings: int = 2, seed: int = 0) -> list[dict[str, str]]:
    """Return `wordings` sentences about each fact with the country's continent.

    The sentences do not name the continent, and have a random order:
    {"text": "People in Kenya speak Swahili.", "label": "Africa", "group": "Kenya",
    "category": "language"}
    """
    draw = random.Random(seed)
    rows = [
        {
            "text": wording.format(**fact),
            "label": fact["continent"],
            "group": fact["country"],
            "category": attribute,
        }
        for fact in demo.facts()
        for attribute in demo.ATTRIBUTES
        if attribute != "continent"
        for wording in draw.sample(SENTENCES[attribute], wordings)
    ]
    draw.shuffle(rows)
    return rows
