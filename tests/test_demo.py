"""The demo world's facts and questions are as the lessons describe them."""

from __future__ import annotations

from collections import Counter

import pytest

from colab_utils import data, demo, evaluation

REAL, INVENTED = demo.facts(), demo.facts(invented=True)


def test_facts_are_complete():
    assert len(REAL) >= 190 and len(INVENTED) >= 20
    for fact in REAL + INVENTED:
        assert tuple(fact) == ("country", *demo.ATTRIBUTES)
        for value in fact.values():
            assert value and value.isascii() and value == value.strip()
    for fact in REAL + INVENTED:
        code = fact["calling_code"]
        assert code[0] == "+" and code[1:].replace(" ", "").isdigit()


def test_facts_have_distinct_names():
    names = [fact["country"].casefold() for fact in REAL + INVENTED]
    capitals = [fact["capital"].casefold() for fact in INVENTED]
    assert max(Counter(names).values()) == 1
    assert not set(capitals) & {fact["capital"].casefold() for fact in REAL}


def test_facts_of_well_known_countries():
    known = {fact["country"]: fact for fact in REAL}
    assert known["France"] == {
        "country": "France",
        "capital": "Paris",
        "currency": "euro",
        "continent": "Europe",
        "language": "French",
        "calling_code": "+33",
    }
    assert known["Japan"]["capital"] == "Tokyo"
    assert known["Kenya"]["continent"] == "Africa"


def test_facts_of_invented_countries_cannot_be_guessed():
    """Guessing from the real countries scores no more than chance."""
    matches = {}
    for attribute in demo.ATTRIBUTES:
        usual, _ = Counter(fact[attribute] for fact in REAL).most_common(1)[0]
        matches[attribute] = sum(fact[attribute] == usual for fact in INVENTED)
    chance = evaluation.chance([data.to_row(row, 0) for row in demo.questions()])
    assert sum(matches.values()) / len(INVENTED) / len(matches) <= chance < 0.2
    assert matches["capital"] == matches["calling_code"] == 0


@pytest.mark.parametrize("wordings", [1, 2, 4])
def test_questions_ask_every_fact_in_different_words(wordings):
    rows = demo.questions(wordings=wordings)
    assert len(rows) == len(REAL) * len(demo.ATTRIBUTES) * wordings
    facts = {fact["country"]: fact for fact in REAL}
    asked = Counter((row["group"], row["category"]) for row in rows)
    assert set(asked.values()) == {wordings}
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"] == facts[row["group"]][row["category"]]
        assert row["group"] in row["question"]


@pytest.mark.slow
def test_questions_have_no_near_duplicates():
    rows = [data.to_row(raw, 0) for raw in demo.questions(wordings=4)]
    assert data.near_duplicates(rows) == list(range(len(rows)))


def test_questions_and_flawed_depend_on_the_seed():
    assert demo.questions(seed=1) == demo.questions(seed=1) != demo.questions(seed=2)
    rows = demo.questions()
    assert demo.flawed(rows, 1) == demo.flawed(rows, 1) != demo.flawed(rows, 2)


def test_flawed_adds_rows_and_removes_none():
    rows = demo.questions(invented=True)
    before = [dict(row) for row in rows]
    mixed = demo.flawed(rows)
    assert rows == before and len(mixed) == len(rows) + 58
    assert all(row in mixed for row in rows)
    assert sum("\n\n\n" in (row["question"] or "") for row in mixed) == 1
    refusals = [r for r in mixed if "As an AI" in str(r.get("answer"))]
    assert len(refusals) == 1 and refusals[0]["question"]
