"""What a generator writes is parsed leniently, and what is of no use is rejected."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import creation, data
from colab_utils.creation import Chunk, Pair, prompts, writing

CHUNK = Chunk("towers.md", 1, "The tower was built in 1887. Ada built it.", 12, 0, 42)
GOOD = {"question": "When was the tower built?", "answer": "1887"}
PAIR = Pair(GOOD["question"], GOOD["answer"], CHUNK)


def say(*texts: str):
    """Return a generator that says these texts, and one that records its prompts."""
    asked: list[str] = []

    def generator(conversations):
        asked.extend(turns[-1]["content"] for turns in conversations)
        return list(texts)

    return generator, asked


def pairs_in(text: str) -> list[tuple[str, ...]]:
    pairs, _ = creation.write([CHUNK], say(text)[0])
    return [(pair.question, pair.answer) for pair in pairs]


WRAPPINGS = [
    "%s",
    "```json\n%s\n```",
    "Sure! Here they are:\n\n```\n%s\n```\nI hope that helps {you}.",
    '<think>maybe [{"question": "a", "answer": "b"}]</think>\n%s',
    '{"pairs": %s}',
    "[1] and {2}: %s",
    "%s\n\n[",
]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_write_finds_json_in_any_wrapping(wrapping):
    two = {"Question": "Who built it, {exactly}?", "ANSWER": "Ada"}
    text = wrapping % json.dumps([GOOD, two])
    assert pairs_in(text) == [tuple(GOOD.values()), tuple(two.values())]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"{json.dumps(GOOD)}\n{json.dumps(GOOD)[:-9]}",
        f'[{json.dumps(GOOD)}, {{"question": "Who bui',
        f"[{json.dumps(GOOD)},]",
        json.dumps([GOOD, {"question": "", "answer": "x"}, {"answer": 1}, None, 3]),
        json.dumps({"items": {"1": GOOD}}),
        '{"question": "When was the tower built?", "answer": 1887}',
    ],
)
def test_write_saves_what_is_whole(text):
    assert pairs_in(text) == [tuple(GOOD.values())]


def test_write_keeps_lines_and_order():
    text = '[{"question": "Steps?", "answer": " 1. a\n2. b\\n"}, ' + json.dumps(GOOD)
    assert pairs_in(text) == [("Steps?", "1. a\n2. b"), tuple(GOOD.values())]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no text came back"),
        ("I'd rather not.", "the generator's text holds no JSON with question and"),
        ('[{"question": ["a"], "answer": "b"}]', "the generator's text holds no JSON"),
        ('[{"question": "a", "answer": true}]', "the generator's text holds no JSON"),
        ("[{'question': 'a', 'answer': 'b'}]", "the generator's text holds no JSON"),
    ],
)
def test_write_rejects_with_reason_and_start(text, reason):
    pairs, rejected = creation.write([CHUNK, CHUNK], say(text, json.dumps(GOOD))[0])
    assert [pair.question for pair in pairs] == [GOOD["question"]]
    (one,) = rejected
    assert one.line == 1 and one.reason.startswith(reason) and one.start == text


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("When?", "I'm sorry, I cannot answer that.", "the generator refused"),
        ("When?", "As an AI, I do not know.", "the generator refused"),
        ("According to the passage, when?", "1887", "mentions 'According to the pass"),
        ("When was the tower in this text built?", "1887", "mentions 'in this text'"),
        ("Rewritten question: when?", "1887", "mentions 'Rewritten question'"),
        ("...", "...", "has no words"),  # the example in the prompt
    ],
)
def test_write_rejects_flaws(question, answer, reason):
    text = json.dumps({"question": question, "answer": answer})
    pairs, (one,) = creation.write([CHUNK], say(text)[0])
    assert pairs == [] and reason in one.reason and one.start == question


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What does the word d\u00e9sol\u00e9 mean?", "Sorry for something"[6:]),
        ("Who wrote the text of the anthem?", "Ada wrote the passage in 1887."),
        ("Why did he not come?", "He wrote: I am sorry. " + "It rained. " * 50),
    ],
)
def test_write_keeps_what_only_sounds_like_a_flaw(question, answer):
    text = json.dumps({"question": question, "answer": answer})
    assert pairs_in(text) == [(question, answer.strip())]


def test_write_shows_the_passage_with_braces():
    chunk = Chunk("a", 1, "def f(): return {0}", 8, 0, 19)
    generator, asked = say("")
    creation.write([chunk], generator, count=5)
    assert "Write 5 questions" in asked[0] and asked[0].endswith("return {0}")


def test_generator_must_answer_each():
    with pytest.raises(ValueError, match="returned 1 texts for 2 conversations"):
        creation.write([CHUNK, CHUNK], say("a")[0])


def test_half_a_character_does_not_stop_the_save():
    text = '[{"question": "Who \\ud83d?", "answer": "Ada \\ud800"}]'
    assert pairs_in(text) == [("Who ??", "Ada ?")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["question", "answer", "Score", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.text() | VALUES.map(json.dumps), st.text('{}[]",: ab\\', max_size=30))
def test_any_text_gives_rows_that_can_be_saved_or_a_rejected_one(text, rest):
    for whole in (text, rest + text, text + rest):
        generator, _ = say(whole)
        pairs, rejected = creation.write([CHUNK], generator)
        assert pairs or rejected
        for row in creation.to_rows(pairs):
            json.dumps(row, ensure_ascii=False).encode()
            assert data.answer_of(row).strip() and data.prompt_of(row).strip()
        for step in (creation.evolve, creation.improve, creation.judge):
            *kept, refused = step([PAIR], generator)
            assert sum(map(len, kept)) + len(refused) == 1


@pytest.mark.parametrize("piece", ["[", "{", '{"a":', "[1,", '["', '["",["",', "<"])
def test_hostile_text_has_no_pairs(piece):
    """A parser that is quadratic in the length takes hours here."""
    assert pairs_in(piece * 300_000) == []


# --- evolve, improve, judge ----------------------------------------------------------


def test_evolve_takes_turns_and_eliminates():
    harder = {"question": "Who built the tower, and when?", "answer": "Ada, in 1887"}
    same = {"question": "when was  the tower built", "answer": "1887"}
    sorry = {"question": "Why?", "answer": "I'm sorry, I can't help with that."}
    copied = {"question": "Given question: when?", "answer": "1887"}
    texts = [json.dumps(one) for one in (harder, same, sorry, copied)]
    generator, asked = say(*texts, "no JSON")
    evolved, rejected = creation.evolve([PAIR] * 5, generator)
    assert [(p.question, p.answer) for p in evolved] == [tuple(harder.values())]
    assert [(r.line, r.reason) for r in rejected] == [
        (2, "the question is unchanged"),
        (3, "the generator refused"),
        (4, "the question mentions 'Given question'"),
        (5, "the generator's text holds no JSON with question and answer"),
    ]
    kinds = list(prompts.EVOLUTIONS.values())
    assert all(kinds[i % 3] in text for i, text in enumerate(asked))
    assert all(PAIR.question in text and CHUNK.text in text for text in asked)


def test_improve_changes_the_answer_only():
    generator, asked = say('{"answer": "In 1887."}', "{}", '{"answer": "Sorry, no."}')
    wrong = Pair(PAIR.question, "1900", CHUNK, score=2)
    improved, rejected = creation.improve([wrong] * 3, generator)
    assert improved == [Pair(PAIR.question, "In 1887.", CHUNK, score=0)]
    assert [r.reason for r in rejected] == [
        "the generator's text holds no JSON with an answer",
        "the generator refused",
    ]
    assert "Answer: 1900" in asked[0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reason": "good", "score": 9}', 9),
        ('```json\n{"score": "8/10"}\n```', 8),
        ('{"score": 7.5}', 7),
        ("Score: 10/10", 10),
        ("**Score:** 6", 6),
        ("8", 8),
        ('{"reason": "score: 3", "score": 9}', 9),
        ('{"score": 0}', None),
        ('{"score": 11}', None),
        ('{"score": -5}', None),
        ('{"score": null}', None),
        ("It deserves praise.", None),
        ("In 1887 it was 10 m tall", None),
        ("", None),
    ],
)
def test_judge_reads_score(text, score):
    good, low, rejected = creation.judge([PAIR], say(text)[0], at_least=7)
    assert [p.score for p in good + low] == ([] if score is None else [score])
    assert len(rejected) == (score is None)
    assert bool(good) == (score is not None and score >= 7)


# --- pairs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "grounded"),
    [
        ("1887", True),
        ("ada BUILT it!", True),
        ("in 1887", True),
        ("188", False),
        ("Ada in 1887", False),
        ("...", False),
    ],
)
def test_grounded_means_the_words_stand_in_the_chunk(answer, grounded):
    assert Pair("?", answer, CHUNK).grounded == grounded


def test_rows_are_split_by_document():
    other = Chunk("other.md", 1, "A bridge.", 3, 0, 9)
    pairs = [
        Pair(f"Question {i} about {c}?", "x", c) for c in (CHUNK, other) for i in "12"
    ]
    rows = creation.to_rows(pairs)
    assert [data.kind_of(row) for row in rows] == ["instruction"] * 4
    train, test = data.split(rows, 0.5, seed=0)
    assert {r["group"] for r in train}.isdisjoint(r["group"] for r in test)
    assert len({row["line"] for row in rows}) == 4


def test_rows_of_one_document_are_grouped_by_chunk():
    second = Chunk("towers.md", 2, "It is white.", 4, 42, 54)
    rows = creation.to_rows([PAIR, Pair("Color?", "white", second)], "chunk")
    assert [row["group"] for row in rows] == [
        "towers.md, chunk 1",
        "towers.md, chunk 2",
    ]


def test_reject_low_gives_the_score():
    (one,) = creation.reject_low([Pair("When?", "1900", CHUNK, score=3)])
    assert (one.line, one.start) == (1, "When?")
    assert one.reason == "the judge's score is 3 of 10"


def test_prompts_have_the_fields_that_are_filled():
    fields = writing._fields(PAIR, how="x")
    for template in (prompts.EVOLVE, prompts.IMPROVE, prompts.JUDGE):
        filled = template.format(**fields)
        assert CHUNK.text in filled and PAIR.question in filled
