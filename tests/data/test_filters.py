"""Lengths, duplicates and the split, against brute force and for every seed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import demo
from colab_utils.data import dataset as data
from colab_utils.data import filters as curate


def row(question: str, answer: str = "yes", line: int = 0, **more: str) -> data.Row:
    messages = data.to_messages({"question": question, "answer": answer})
    return {"messages": messages, "line": line, **more}


# --- lengths -------------------------------------------------------------------------


def test_lengths_are_those_of_training(tokenizer):
    rows = [row(f"What is {n}?", "the answer " * n) for n in (1, 600, 3)]
    lengths = curate.token_lengths(rows * 200, tokenizer)
    ids = [tokenizer.apply_chat_template(r["messages"])["input_ids"] for r in rows]
    assert lengths == [len(i) for i in ids] * 200


def test_long_rows_are_set_aside_with_their_length():
    rows = [row(f"question {n}", line=n) for n in (4, 5, 6)]
    kept, rejected = curate.drop_long(rows, [10, 11, 9], 10)
    assert kept == [rows[0], rows[2]]
    assert [r.as_dict() for r in rejected] == [
        {
            "line": 5,
            "reason": "too long: 11 tokens, the limit is 10",
            "start": "question 5",
        }
    ]


def test_when_every_row_is_too_long():
    with pytest.raises(ValueError, match=r"all 2 .*longer than 5.*shortest has 8"):
        curate.drop_long([row("a"), row("b")], [9, 8], 5)


# --- duplicates ----------------------------------------------------------------------


def test_texts_are_compared_by_pairs_of_words():
    assert curate.normalised("Hello,  World!") == "hello world"
    assert curate.normalised("ﬁne ＡＢＣ Straße") == "fine abc strasse"
    assert curate.normalised(" ?! ") == "?!"
    assert curate.normalised("C# or C++?") == "c# or c++"
    assert curate.shingles("To be, or") == {"to be", "be or"}
    assert curate.shingles("One") == {"one"}
    assert curate.shingles("??") != curate.shingles("!!")
    assert curate.shingles("") == {""}


def test_exact_repeats_keep_their_first():
    rows = [
        row("a", line=1),
        row("b", line=2),
        row("a", line=3),
        row("a", "no", line=4),
    ]
    kept, rejected = curate.drop_exact(rows)
    assert [r["line"] for r in kept] == [1, 2, 4]
    assert [(r.line, r.reason) for r in rejected] == [(3, "repeats line 1")]


def test_a_mark_in_a_text_is_found(tokenizer):
    rows = [row("What ends a <s>entence?"), row("fine", line=2), row("a", "b</s>c")]
    kept, rejected = curate.drop_marked(rows, tokenizer)
    assert [r["line"] for r in kept] == [2]
    assert [r.reason for r in rejected] == ["holds the mark <s>", "holds the mark </s>"]


def brute_force(texts: list[str], threshold: float) -> list[int]:
    """The first of all that can be reached over similar pairs, every pair compared."""
    sets = [curate.shingles(text) for text in texts]
    near = [[len(a & b) >= threshold * len(a | b) for b in sets] for a in sets]
    first = []
    for i in range(len(texts)):
        reached, todo = {i}, [i]
        while todo:
            new = [j for j, is_near in enumerate(near[todo.pop()]) if is_near]
            todo += [j for j in new if j not in reached]
            reached.update(new)
        first.append(min(reached))
    return first


@st.composite
def alike(draw) -> list[str]:
    """Copies of a few texts, each with a few words changed, left out or put in."""
    word = st.sampled_from([f"w{n}" for n in range(draw(st.integers(1, 40)))])
    bases = draw(st.lists(st.lists(word, max_size=40), min_size=1, max_size=3))
    texts = []
    for _ in range(draw(st.integers(0, 14))):
        words = list(draw(st.sampled_from(bases)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(words)))
            words[at : at + draw(st.integers(0, 2))] = draw(st.lists(word, max_size=2))
        texts.append(" ".join(words))
    return texts


@given(alike())
@settings(deadline=None, max_examples=400)
def test_near_duplicates_are_those_of_brute_force(texts):
    assert curate.near_duplicates(texts) == brute_force(texts, 0.85)


def test_a_third_text_links_two():
    words = [f"w{n}" for n in range(60)]
    first, middle, last = (" ".join(words[k : k + 50]) for k in (0, 3, 6))
    assert curate.near_duplicates([first, last]) == [0, 1]
    assert curate.near_duplicates([first, last, "w1 w2", middle]) == [0, 0, 2, 0]


def test_rows_that_share_most_words_are_told_apart():
    template = " ".join(f"w{n}" for n in range(150))
    texts = [
        f"{template} " + " ".join(f"x{n}y{k}" for k in range(20)) for n in range(200)
    ]
    assert curate.near_duplicates(texts) == list(range(200))
    same = [f"{template} {n}" for n in range(200)]
    assert set(curate.near_duplicates(same)) == {0}


def without_near(rows):
    """The first of each group, as 01_create_dataset keeps them."""
    first = curate.near_duplicates(
        [f"{data.prompt_of(r)}\n{data.answer_of(r)}" for r in rows]
    )
    return [row for i, row in enumerate(rows) if first[i] == i]


def test_near_repeats_look_at_question_and_answer():
    long = "which of these two words do you think is the one that I was thinking of"
    rows = [
        row(long, "this one"),
        row(long.upper() + "?", "This one."),
        row(long, "no"),
    ]
    assert without_near(rows) == [rows[0], rows[2]]


# --- the split -----------------------------------------------------------------------


@given(alike(), st.integers(0, 5), st.floats(0.1, 0.9), st.data())
@settings(deadline=None, max_examples=150)
def test_what_belongs_together_stays_on_one_side(texts, seed, share, draw):
    rows = []
    for n, text in enumerate(texts):
        country = draw.draw(st.sampled_from(["", *"ABCDEF"]))
        rows.append(
            row(text or "?", line=n, **({"country": country} if country else {}))
        )
    try:
        train, test = curate.split(rows, share, seed)
    except ValueError as error:
        assert f"{len(rows) or 'No'} row" in str(error)
        return
    assert sorted(r["line"] for r in train + test) == list(range(len(rows)))
    assert curate.split(rows, share, seed) == (train, test)
    for a, b in itertools.product(train, test):
        one, other = (curate.shingles(data.prompt_of(r)) for r in (a, b))
        assert len(one & other) < 0.85 * len(one | other)
        assert a.get("country", "a") != b.get("country", "b")


def test_the_share_is_kept_and_the_seed_decides():
    rows = [row(f"question number {n}", line=n) for n in range(200)]
    splits = {
        tuple(r["line"] for r in curate.split(rows, 0.3, seed)[1]) for seed in range(5)
    }
    assert len(splits) == 5 and {len(test) for test in splits} == {60}


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_a_side_left_empty(share):
    rows = [row(f"question number {n}") for n in range(9)]
    with pytest.raises(
        ValueError, match=r"9 rows can't be split .*9 groups.*TEST_SHARE"
    ):
        curate.split(rows, share, 0)
    with pytest.raises(ValueError, match="leaves 1 groups"):
        curate.split([row("same?"), row("Same.")], 0.5, 0)


# --- the whole way -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_planted_flaws_are_found_and_no_good_row_is_lost(tmp_path, tokenizer, seed):
    good = demo.questions(seed=seed)
    data.write_jsonl(tmp_path / "raw.jsonl", demo.flawed(good, seed))
    rows, rejected = data.load(str(tmp_path / "raw.jsonl"))
    assert len(rejected) == 5
    rows, too_long = curate.drop_long(rows, curate.token_lengths(rows, tokenizer), 256)
    rejected += too_long
    assert len(too_long) == 1 and len({r.line for r in rejected}) == 6
    rows = [row for row in rows if "As an AI" not in data.answer_of(row)]
    unique, repeats = curate.drop_exact(rows)
    assert len(repeats) == 30
    assert len(rows) - len(unique) == 30
    kept = without_near(unique)
    assert len(unique) - len(kept) == 20 + 1  # and the one with blank lines
    assert len(good) + 58 == len(kept) + len(rejected) + 1 + 30 + 21

    def facts(rows):
        return {(r["country"], r["attribute"], data.answer_of(r)) for r in rows}

    expected = [data.to_row(r, 0) for r in good]
    assert Counter(curate.normalised(data.prompt_of(r)) for r in kept) == Counter(
        curate.normalised(data.prompt_of(r)) for r in expected
    )
    assert facts(kept) == facts(expected)
    train, test = curate.split(kept, 0.5, seed)
    assert abs(len(train) - len(test)) <= 10
    assert {r["attribute"] for r in train} == {r["attribute"] for r in test}
