"""Duplicates: what is a repeat and what is not, on planted repeats and look-alikes."""

from __future__ import annotations

import itertools
import random

import pytest
from helpers import planting
from helpers.rows import row, similar_texts, without_near_duplicates
from hypothesis import given, settings

from colab_utils import data
from colab_utils.data.repeats import candidates, dedup, typos
from colab_utils.data.repeats.candidates import candidate_pairs
from colab_utils.data.repeats.engine import Repeats
from colab_utils.data.repeats.fingerprints import fingerprint
from colab_utils.data.repeats.hashes import word_hash


def first_of(texts: list[tuple[str, str]], batch: int = 10**9) -> list[int]:
    found = Repeats()
    for start in range(0, len(texts), batch):
        found.add(texts[start : start + batch])
    return found.first(lambda indices: [texts[i] for i in indices]).tolist()


def repeat(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return first_of([one, other]) == [0, 0]


def test_normalize_and_shingles():
    assert data.normalize("Hello,  World!") == "hello world"
    assert data.normalize("ﬁne ＡＢＣ Straße") == "fine abc strasse"
    assert data.normalize(" ?! ") == "?!"
    assert data.normalize("C# or C++?") == "c# or c++"
    assert data.normalize("a+b") == "a b"
    assert data.normalize("法国") == "法 国"  # no spaces: each sign is a word
    assert data.normalize("की") != data.normalize("का")  # vowel signs stay
    assert data.shingles("To be, or") == {"to be", "be or"}
    assert data.shingles("One") == {"one"}
    assert data.shingles("??") != data.shingles("!!")
    assert data.shingles("") == {""}


def test_drop_exact_keeps_the_first():
    rows = [
        row("a", line=1),
        row("b", line=2),
        row("a", line=3),
        row("a", "no", line=4),
    ]
    kept, rejected = data.drop_exact(rows)
    assert [r["line"] for r in kept] == [1, 2, 4]
    assert [(r.line, r.reason) for r in rejected] == [(3, "repeats line 1")]


@pytest.mark.parametrize(
    "content",
    [
        {"text": "raw"},
        {"text": "raw", "label": "a"},
        {"prefix": "a", "middle": "b", "suffix": "c"},
        {
            "prompt": [],
            "chosen": [{"role": "assistant", "content": "x"}],
            "rejected": [],
        },
        {"messages": [{"role": "assistant", "content": "x"}], "tools": [{"name": "f"}]},
    ],
)
def test_exact_key_is_the_content(content):
    key = dedup.exact_key({**content, "line": 1, "group": "g"})
    assert key == dedup.exact_key({**content, "line": 2}) and len(key) == 16
    for name in content:
        assert key != dedup.exact_key({**content, name: "other"})


def test_exact_key_has_all_of_a_message_but_the_order_of_its_keys():
    turns = [
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "x", "weight": 0},
        {"role": "assistant", "content": "x", "weight": 1},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "b": 1}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "b": 2}]},
    ]
    keys = [dedup.exact_key({"messages": [turn]}) for turn in turns]
    assert len({*keys}) == len(turns)
    for turn, key in zip(turns, keys, strict=True):
        moved = dict(reversed(turn.items()))
        if calls := turn.get("tool_calls"):
            moved["tool_calls"] = [dict(reversed(call.items())) for call in calls]
        assert dedup.exact_key({"messages": [moved]}) == key


TREES = (
    "Name a tree of the river valley and say why people like it.",
    "The oak, for shade.",
)


@pytest.mark.parametrize(
    "other",
    [
        (
            "NAME a tree of the river valley, and say why people like it",
            "the oak: for shade",
        ),
        (
            "Name a tree of the river vallley and say why peolpe like it.",
            "The oak, for shade.",
        ),
        (
            "Name a tree of the river valley and say why people it like.",
            "The oak, for shade.",
        ),
        (f"Q: {TREES[0]} Thanks!", "Sure! The oak, for shade."),
        (f"{TREES[0]}\n\nBest regards,\nJohn", TREES[1]),
        (
            "Name tree of river valley and say why people like it.",
            "The oak, for shade.",
        ),
        (
            "Name a tree of the rivervalley and say why people like it.",
            "The oak, for shade.",
        ),
    ],
)
def test_the_same_in_other_words_is_a_repeat(other):
    assert repeat(TREES, other) and repeat(other, TREES)


SUM = ("Anna has 5 apples and 3 pears. She buys 4 apples. How many?", "She has 12 now.")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TREES, (TREES[0], "The elm, for owls.")),
        (TREES, (TREES[0].replace("tree", "bird"), TREES[1])),
        (TREES, (TREES[0].replace("and say", "and do not say"), TREES[1])),
        (SUM, (SUM[0].replace("4", "6"), SUM[1])),
        (SUM, ("Anna has 3 apples and 5 pears. She buys 4 apples. How many?", SUM[1])),
        (("Compute 2 + 2.", "It is 4."), ("Compute 2 * 2.", "It is 4.")),
        (("法国的首都是什么?", "是"), ("德国的首都是什么?", "是")),
        (("Who rules in Mali?", "A king."), ("Who rules in Bali?", "A king.")),
        (("Say it.", "??"), ("Say it.", "!!")),
        (("", "ha ha"), ("", "ho ho")),
    ],
)
def test_another_word_or_number_is_not_a_repeat(one, other):
    assert not repeat(one, other) and not repeat(other, one)


def test_sentences_may_move_with_their_numbers():
    parts = [
        "The red mill has 12 wheels.",
        "The old bridge has 7 arches.",
        "The town is big.",
    ]
    texts = [(" ".join(order), "Fine.") for order in itertools.permutations(parts)]
    assert set(first_of(texts)) == {0}


def test_another_context_or_system_message_is_not_a_repeat():
    def asked(system: str) -> data.Row:
        turns = [
            ("system", system),
            ("user", "Who are you?"),
            ("assistant", "A guide."),
        ]
        return {"messages": [{"role": r, "content": c} for r, c in turns]}

    rows = [
        asked("You are in Rome."),
        asked("You are in Oslo."),
        asked("you are in rome"),
    ]
    assert data.near_duplicates(rows) == [0, 1, 0]


def test_near_duplicates_linked_by_a_third_row():
    one = ("The big river floods the old market every single spring.", "Yes.")
    other = (one[0].replace("river", "rivre").replace("market", "marekt"), "Yes.")
    third = (other[0].replace("spring", "sprnig").replace("single", "signle"), "Yes.")
    assert data.near_duplicates([row(*one), row(*other), row(*third)]) == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("shared_words", [80, 150])
def test_rows_that_share_a_long_text_are_kept(shared_words, capsys):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(3000)]
    instruction = " ".join(words[:shared_words])
    rows = [
        row(f"{instruction}.\n{' '.join(draw.sample(words, 6))}") for _ in range(200)
    ]
    assert data.near_duplicates(rows) == list(range(200))
    assert "shared by 200 of 200 rows and not compared: '" in capsys.readouterr().out
    again = row(f"{instruction}.\n{data.prompt_of(rows[7]).split(chr(10))[1].upper()}!")
    assert data.near_duplicates([*rows, again])[-1] == 7


def test_one_template_with_other_names_is_kept(capsys):
    starts, ends = ["Cor", "Gal", "Lor", "Fen", "Mon"], ["ford", "wick", "burg", "ham"]
    names = [a + b for a in starts for b in ends]
    rows = [row(f"What was the {n}?", "An aircraft of the army.") for n in names]
    assert data.near_duplicates(rows) == list(range(20))
    assert "shared by 20 of 20 rows" in capsys.readouterr().out  # the answer


def test_duplicate_pairs_have_a_similarity():
    rows = [
        row(*TREES),
        row(TREES[0].replace("valley", "vallye"), TREES[1]),
        row("Hm?"),
    ]
    (pair,) = data.duplicate_pairs(rows)
    assert (pair.first, pair.second) == (0, 1) and pair.similarity == 1 - 1 / 17


# --- planted repeats and look-alikes --------------------------------------------------


def corpus(draw: random.Random) -> list[tuple[str, str]]:
    """Return questions of a few templates, with invented words, names and numbers."""
    letters = "bcdfghklmnprstvz"
    words = [
        "".join(
            draw.choice(letters) + draw.choice("aeiou")
            for _ in range(draw.randint(2, 4))
        )
        for _ in range(500)
    ]
    rows = []
    for _ in range(600):
        a, b, c, d, e, f = draw.sample(words, 6)
        name, number = a.title(), draw.randint(2, 900)
        prompt = draw.choice(
            [
                f"{b.title()} and {name} found {number} {c} in the {d}. How many {e}?",
                f"What is the {b} of the {c} that {name} made? It has {number} parts.",
                f"Describe the {b} {c}. Then compare it with the {d} of {name}.",
            ]
        )
        answer = (
            f"It is the {e} {f}, which {name} keeps in the {b}. There are {number}."
        )
        rows.append((prompt, answer))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_planted_repeats_are_found_and_look_alikes_kept(seed):
    draw = random.Random(seed)
    rows = corpus(draw)
    assert first_of(rows) == list(range(600))
    near = [
        (planting.near(draw, rows[i], kind), i)
        for kind in planting.EDITS
        for i in draw.sample(range(600), 40)
    ]
    words = " ".join(prompt for prompt, _ in rows).split()
    hard = [
        *(
            planting.other_number_in_prompt(draw, r)
            for r in rows[:400]
            if "parts" in r[0]
        ),
        *(planting.other_name(draw, r) for r in rows[:100]),
        *((r[0], other[1]) for r, other in zip(rows[:99], rows[300:399], strict=True)),
        *(
            planting.other_word(draw, r, [w for w in words if w.isalpha()])
            for r in rows[:99]
        ),
    ]
    first = first_of([*rows, *(texts for texts, _ in near), *hard])
    hits = sum(first[600 + n] == i for n, (_, i) in enumerate(near))
    kept = [i for i in range(600 + len(near), len(first))]
    wrong = sum(first[i] != i for i in kept)
    assert hits / len(near) >= 0.98
    assert hits / (hits + wrong) >= 0.98


@pytest.mark.parametrize("words", [20, 120])
def test_first_does_not_depend_on_the_batches(words):
    draw = random.Random(0)
    texts = []
    for _ in range(300):
        chosen = [
            f"{draw.choice('abcdefgh')}{draw.choice('aeiou')}x" * 2
            for _ in range(words)
        ]
        texts.append((" ".join(chosen), ""))
        texts.append(planting.near(draw, texts[-1], "case"))
    assert first_of(texts, 7) == first_of(texts, 450) == first_of(texts)
    assert sum(i != j for i, j in enumerate(first_of(texts))) >= 300


@pytest.mark.slow
def test_few_pairs_of_rows_with_a_shared_text_are_compared(monkeypatch):
    """100 shared words and 14 own ones: there are 8 million pairs of 4,000 rows."""
    counts = []

    def counted(rows):
        pairs = candidate_pairs(rows)
        counts.append(len(pairs[0]))
        return pairs

    monkeypatch.setattr(candidates, "candidate_pairs", counted)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(5000)]
    rows = [row(" ".join(words[:100] + draw.sample(words, 14))) for _ in range(4000)]
    assert without_near_duplicates(rows) == rows
    assert len(counts) == 1 and counts[0] < 20 * len(rows)


@pytest.mark.slow
@given(similar_texts())
@settings(deadline=None, max_examples=60)
def test_equal_words_are_repeats_whatever_the_text(texts):
    rows = [(text, "") for text in texts]
    first = first_of(rows)
    by_words: dict[str, int] = {}
    for i, text in enumerate(texts):
        assert first[i] <= i and first[first[i]] == first[i]
        assert first[i] == first[by_words.setdefault(data.normalize(text), i)]


# --- the parts ------------------------------------------------------------------------


def test_one_edit():
    assert typos.one_edit("valley", "vallye") == "swap"
    assert (
        typos.one_edit("valley", "valey") == typos.one_edit("valey", "valley") == "add"
    )
    assert typos.one_edit("valley", "volley") == "replace"
    assert (
        typos.one_edit("valley", "vlalye") == typos.one_edit("valley", "valley") == ""
    )


def test_fingerprints_hash_words_as_word_hash():
    found = fingerprint([("Straße, ÉLAN", "x_1 zebra"), ("", "the")])
    expected = sorted(map(word_hash, ["strasse", "élan", "x_1", "zebra"]))
    assert found.words.tolist() == expected and found.sizes.tolist() == [4, 0]
    halves = fingerprint([("a b", "c")]), fingerprint([("a", "b c")])
    assert halves[0].exact != halves[1].exact


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("7 * -2?", "-14"), ("7 * 2?", "14")),
        (("What is x here?", "-7"), ("What is x here?", "7")),
        (("Which language?", "C#"), ("Which language?", "C")),
        (("Write: a and b", "a && b"), ("Write: a and b", "a || b")),
        (("Negate it.", "!flag"), ("Negate it.", "flag")),
        (("What does it cost?", "$5"), ("What does it cost?", "€5")),
        (("Take the first.", "x[0]"), ("Take the first.", "x(0)")),
        (("Select the head.", "#top"), ("Select the head.", ".top")),
        (("A digit, or not one?", r"\d"), ("A digit, or not one?", r"\D")),
        (("Mood: a day 😀", "good"), ("Mood: a day 😡", "good")),
    ],
)
def test_rows_that_differ_in_signs_are_no_repeats(one, other):
    assert first_of([one, other]) == [0, 1]
    assert not dedup.duplicate_pairs([row(*one), row(*other)])


def test_rows_that_train_other_turns_are_no_repeats():
    turns = [
        {"role": role, "content": text}
        for role, text in zip(
            ("user", "assistant") * 2,
            ("Who?", "A man.", "Really?", "A dog."),
            strict=True,
        )
    ]
    rows = []
    for i in (1, 3):
        messages = [dict(turn) for turn in turns]
        messages[i]["weight"] = 0
        rows.append({"messages": messages, "line": i})
    assert data.near_duplicates(rows) == [0, 1]


def test_preferences_with_exchanged_answers_are_no_repeats():
    old, ask = ({"role": "assistant", "content": t} for t in ("The oak.", "Ask Ann."))
    prompt = [{"role": "user", "content": "Which tree?"}]
    rows = [
        {"prompt": prompt, "chosen": [old], "rejected": [ask], "line": 1},
        {"prompt": prompt, "chosen": [ask], "rejected": [old], "line": 2},
    ]
    assert data.near_duplicates([*rows, rows[0]]) == [0, 1, 0]
