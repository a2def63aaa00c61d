"""Pairs of rows with a person's verdict: a repeat, or another row.

A false repeat loses a good row, so none is allowed. Each pair is judged alone, and in
the presence of rows that make its words known: a word is judged by how many rows have
it.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from helpers import planting
from helpers.verdicts import LONG, OTHERS, REPEATS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colab_utils.data.repeats.comparing import Comparer
from colab_utils.data.repeats.engine import Repeats
from colab_utils.data.repeats.typos import are_several, is_typo, may_be_typo
from colab_utils.data.repeats.words import differing

Texts = tuple[str, str]


def first_of(texts: list[Texts]) -> list[int]:
    found = Repeats()
    found.add(texts)
    return found.first(lambda indices: [texts[i] for i in indices]).tolist()


def known(one: Texts) -> list[Texts]:
    """Return rows with the words of a row, each about something else."""
    return [
        (f"Entry {n}: {question} ({n * 7})", f"{answer} See entry {n + 3}.")
        for n, (question, answer) in enumerate([one] * 4, start=11)
    ]


WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


@given(WORDS, WORDS, WORDS, WORDS)
@settings(deadline=None, max_examples=3 * settings.default.max_examples // 2)
def test_differing_counts_the_words_that_one_text_has_more_often(start, a, b, end):
    one, other = start + a + end, start + b + end
    missing, extra = differing(one, other)
    assert [*missing.items()] == [*(Counter(one) - Counter(other)).items()]
    assert [*extra.items()] == [*(Counter(other) - Counter(one)).items()]


@pytest.mark.parametrize("name", OTHERS)
def test_another_row_is_kept(name):
    one, other = OTHERS[name]
    assert first_of([one, other]) == [0, 1]
    assert first_of([other, one]) == [0, 1]
    assert first_of([one, other, *known(one)])[1] == 1
    assert first_of([one, other, *known(other)])[1] == 1


def with_typo(row: Texts, words: set[str]) -> Texts:
    """Swap two letters of the longest word of a row that is one of `words`."""
    long = max(words, key=lambda word: (len(word), word))
    at = len(long) // 2
    typo = long[:at] + long[at + 1] + long[at] + long[at + 2 :]
    return row[0].replace(long, typo), row[1].replace(long, typo)


@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith("terms")])
def test_another_term_next_to_a_typo_is_another_row(name):
    """A typo elsewhere does not make a typo of another term."""
    one, other = OTHERS[name]
    both = set(" ".join(one).split()) & set(" ".join(other).split())
    again = with_typo(other, {word for word in both if word.isalpha()})
    assert again != other
    assert first_of([other, again, *known(other)])[:2] == [0, 0]
    for rows in ([one, again], [again, one]):
        assert first_of([*rows, *known(one)])[:2] == [0, 1]
        assert first_of([*rows, *known(other)])[:2] == [0, 1]


@pytest.mark.parametrize("name", REPEATS)
def test_a_repeat_is_found(name):
    one, other = REPEATS[name]
    assert first_of([one, other]) == [0, 0]
    assert first_of([other, one]) == [0, 0]
    assert first_of([one, other, *known(one)])[:2] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("edit", planting.UNKNOWN)
def test_unknown_boilerplate_is_found_in_rows_of_many_kinds(edit):
    """Each phrase is in several rows, and no word list knows it."""
    draw = random.Random(0)
    things = ["".join(draw.choices("bcdfglmnprst", k=6)) for _ in range(400)]
    rows = [
        (
            f"Where does the {a} of the old {b} keep the {c}?",
            f"The {c} is in the {d} behind the {b}, as far as I know about it.",
        )
        for a, b, c, d in zip(*[iter(things)] * 4, strict=True)
    ]
    near = [planting.near(draw, row, edit) for row in rows]
    assert first_of(rows) == list(range(100))
    found = sum(i == j for i, j in enumerate(first_of([*rows, *near])[100:]))
    assert found >= 96


@given(st.text("aeiostnx.1é", min_size=1), st.text("aeiostnx.1é", min_size=1))
@example("glass", "glas")
@example("at", "att")
def test_typos_of_any_words_are_judged_alike_both_ways(one, other):
    def judge(a: str, b: str) -> bool:
        options = {"name": False, "twice": False, "size": 40}
        return may_be_typo(a, b) and is_typo(a, b, len, **options)

    if one != other:
        assert judge(one, other) == judge(other, one)


@pytest.mark.parametrize(
    ("right", "wrong", "rows", "expected"),
    [
        ("write", "wride", 100, True),  # not a term such as "sulfite"
        ("sulfite", "sulfide", 10, False),
        ("addresses", "adqresses", 1, True),  # no English word has "dq"
        ("date", "ddte", 3, True),  # no word begins with "dd"
        ("dist", "dlist", 1, False),  # may be a name in a program
        ("hexadecimal", "hexadcimal", 3, True),
        ("addition", "addiction", 9, False),
    ],
)
def test_a_typo_is_no_other_word(right, wrong, rows, expected):
    counts = {right: rows, wrong: 1}
    options = {"name": False, "twice": False, "size": 12 if rows < 100 else 30}
    assert is_typo(right, wrong, counts.__getitem__, **options) == expected


def test_a_second_typo_is_judged_less_strictly():
    def judge(right: str, wrong: str, **options: bool) -> bool:
        counts = {right: 4, wrong: 1}
        same = {"name": False, "twice": False, "size": 12, **options}
        return is_typo(right, wrong, counts.__getitem__, **same)

    assert not judge("elements", "eluments")
    assert not judge("numbers", "nurbers", again=True)
    assert judge("numbers", "nurbers", again=True, code=True)
    assert judge("numbers", "numbaers", again=True) and not judge("numbers", "numbaers")
    assert not judge("lipase", "ligase", again=True)


def test_next_to_a_typo_a_known_word_may_be_one():
    def judge(
        right: str, rows: int, wrong: str, others: int, again: bool, code: bool = False
    ) -> bool:
        counts = {right: rows, wrong: others}
        options = {"name": False, "twice": False, "size": 40, "code": code}
        return is_typo(right, wrong, counts.__getitem__, again=again, **options)

    assert judge("list", 90, "lst", 8, True) and not judge("list", 90, "lst", 8, False)
    assert judge("latest", 2, "latwst", 1, True, code=True)
    assert not judge("latest", 2, "latwst", 1, True)
    assert not judge("latest", 2, "latwst", 1, False, code=True)
    assert not judge("latest", 1, "latwst", 1, True, code=True)  # which one is right?


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("latest", "latwst"), ("generic", "generwc")], True),
        ([("latest", "latwst"), ("articles", "artful")], False),
        ([("latest", "latwst"), ("latest", "latqst")], False),
        ([("latest", "latwst"), ("mean", "moan")], False),  # both are known
        ([("latest", "latwst"), ("zymase", "zytase")], False),  # both are unknown
    ],
)
def test_two_unknown_words_in_place_of_known_ones_are_several(pairs, expected):
    counts = dict.fromkeys(("latest", "generic", "articles", "mean", "moan"), 5)
    assert are_several(pairs, lambda word: counts.get(word, 1)) == expected
    swapped = [(other, one) for one, other in pairs]
    assert are_several(swapped, lambda word: counts.get(word, 1)) == expected


PARTS = [
    "the",
    "oak",
    "Ann",
    "=",
    "(",
    ")",
    "\n",
    ". ",
    "? ",
    "Thanks",
    "you",
    "5",
    "法",
]


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.data())
@settings(deadline=None)
def test_any_texts_are_judged_alike_both_ways(words, draw):
    changed = list(words)
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, len(changed)))
        new = draw.draw(st.lists(st.sampled_from(PARTS), max_size=2))
        changed[at : at + draw.draw(st.integers(0, 2))] = new
    one, other = (" ".join(words), LONG), (" ".join(changed), LONG)
    comparer = Comparer(len)
    verdict = comparer.compare(one, other)
    assert 0 <= verdict.similarity <= 1
    assert comparer.compare(one, one).similarity == 1
    assert comparer.compare(other, one).similarity == pytest.approx(verdict.similarity)
