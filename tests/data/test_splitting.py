"""The split for every seed and share; and all steps on the demo's rows."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers.rows import row, similar_texts, without_near_duplicates
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import data, demo
from colab_utils.data import splitting


@pytest.mark.slow
@given(similar_texts(), st.integers(0, 5), st.floats(0.1, 0.9), st.data())
@settings(deadline=None, max_examples=150)
def test_split_keeps_related_rows_on_one_side(texts, seed, share, draw):
    rows = []
    for n, text in enumerate(texts):
        group = draw.draw(st.sampled_from(["", *"ABCDEF"]))
        rows.append(row(text or "?", line=n, **({"group": group} if group else {})))
    try:
        train, test = data.split(rows, share, seed)
    except ValueError as error:
        assert f"{len(rows) or 'No'} row" in str(error)
        return
    assert sorted(r["line"] for r in train + test) == list(range(len(rows)))
    assert data.split(rows, share, seed) == (train, test)
    prompts = [
        {data.normalize(data.prompt_of(r)) for r in part} for part in (train, test)
    ]
    unanswered = [row(data.prompt_of(r), "?") for r in rows]
    one_by_one = len(set(data.near_duplicates(unanswered))) == 1
    for a, b in itertools.product(train, test):
        assert a.get("group", "a") != b.get("group", "b")
    assert one_by_one or not prompts[0] & prompts[1]


def test_split_share_and_seed():
    rows = [row(f"question number {n}", line=n) for n in range(200)]
    splits = {
        tuple(r["line"] for r in data.split(rows, 0.3, seed)[1]) for seed in range(5)
    }
    assert len(splits) == 5 and {len(test) for test in splits} == {60}


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_split_refuses_an_empty_side(share):
    rows = [row(f"question number {n}") for n in range(9)]
    with pytest.raises(ValueError, match=r"9 rows can't be split .*9 sets.*TEST_SHARE"):
        data.split(rows, share, 0)


def test_split_names_a_share_that_works():
    prompts = ["Name a tree.", "Which bird sings at night?", "Describe the old mill."]
    rows = [row(p, f"answer {n}") for n in range(30) for p in prompts]
    with pytest.raises(ValueError, match=r"3 sets of 30 to 30 rows.*from 0.3333 to"):
        data.split(rows, 0.1, 0)
    assert len(data.split(rows, 0.3334, 0)[1]) == 30


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_split_by_rows_if_all_prompts_are_the_same(share, capsys):
    """Style data: one prompt, many answers."""
    rows = [row("Write a line in my style.", f"line {n}", line=n) for n in range(40)]
    train, test = data.split(rows, share, 0)
    assert len(test) == 40 * share and len(train) + len(test) == 40
    assert "all prompts are nearly the same" in capsys.readouterr().out


def test_split_by_the_system_message(capsys):
    def styled(style: str, n: int) -> data.Row:
        turns = [
            {"role": "system", "content": f"You write like {style}."},
            {"role": "user", "content": "Write a line."},
            {"role": "assistant", "content": f"line {n}"},
        ]
        return {"messages": turns, "line": n}

    rows = [styled(style, n) for n in range(9) for style in ("Homer", "Sappho")]
    train, test = data.split(rows, 0.5, 0)
    sides = [{r["messages"][0]["content"] for r in part} for part in (train, test)]
    assert len(train) == len(test) == 9 and not sides[0] & sides[1]
    assert capsys.readouterr().out == ""


def test_split_is_not_chained_by_a_shared_context():
    context = " ".join(
        f"The town has a street called word{chr(97 + n)}." for n in range(26)
    )
    questions = [
        "Who built the mill?",
        "Where is the bell?",
        "When did it burn?",
        "Why?",
    ]
    rows = [
        row(f"{context} {town}\n{question}", "yes", line=n)
        for n, (town, question) in enumerate(
            itertools.product(
                ["Arden", "Bexley", "Corby", "Dunmow", "Epping"], questions
            )
        )
    ]
    train, test = data.split(rows, 0.5, 0)
    assert len(train) == len(test) == 10


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_split_does_not_depend_on_hashes(hash_seed):
    code = (
        "from colab_utils import data, demo\n"
        "rows = [data.to_row(r, n) for n, r in enumerate(demo.questions()[:300])]\n"
        "print([r['line'] for r in data.split(rows, 0.3, 0)[1]][:20])"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [data.to_row(r, n) for n, r in enumerate(demo.questions()[:300])]
    expected = [r["line"] for r in data.split(rows, 0.3, 0)[1]][:20]
    assert out.stdout.splitlines()[-1] == str(expected)


@pytest.mark.slow
def test_split_of_many_rows_of_one_template():
    rows = [row(f"What is {n} plus {n % 97}?", f"{n}", line=n) for n in range(20_000)]
    train, test = data.split(rows, 0.1, 0)
    assert len(test) == 2_000 and len(train) == 18_000


# --- all steps ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_steps_find_the_planted_flaws_and_lose_no_good_row(tmp_path, tokenizer, seed):
    good = demo.questions(seed=seed)
    data.write_jsonl(tmp_path / "raw.jsonl", demo.flawed(good, seed))
    rows, rejected = data.load(str(tmp_path / "raw.jsonl"))
    assert len(rejected) == 5
    rows, too_long = data.drop_long(rows, data.token_lengths(rows, tokenizer), 256)
    rejected += too_long
    assert len(too_long) == 1 and len({r.line for r in rejected}) == 6
    rows = [row for row in rows if "As an AI" not in data.answer_of(row)]
    unique, repeats = data.drop_exact(rows)
    assert len(repeats) == 30
    assert len(rows) - len(unique) == 30
    kept = without_near_duplicates(unique)
    assert len(unique) - len(kept) == 20 + 1  # and the one with blank lines
    assert len(good) + 58 == len(kept) + len(rejected) + 1 + 30 + 21

    def facts(rows):
        return {(r["group"], r["category"], data.answer_of(r)) for r in rows}

    expected = [data.to_row(r, 0) for r in good]
    assert Counter(data.normalize(data.prompt_of(r)) for r in kept) == Counter(
        data.normalize(data.prompt_of(r)) for r in expected
    )
    assert facts(kept) == facts(expected)
    train, test = data.split(kept, 0.5, seed)
    assert abs(len(train) - len(test)) <= 10
    assert {r["category"] for r in train} == {r["category"] for r in test}


def digest(rows: list[data.Row]) -> str:
    """Return a hash of the rows' questions and answers, in order."""
    lines = [f"{data.prompt_of(row)}\t{data.answer_of(row)}" for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "share", "sizes", "train_hash", "test_hash"),
    [
        (0, 0.5, (980, 990), "a90372878d218c51", "78ae6e47f99f2d1e"),
        (0, 0.1, (1770, 200), "380d683246ca63b8", "0a1d4a0f66fca1e2"),
        (1, 0.5, (980, 990), "9a92b3c5eefec4a1", "e1cc805d9abe3317"),
        (1, 0.1, (1770, 200), "54343a8ca7cd25c7", "ea24f4f7d66249c5"),
    ],
)
def test_split_of_the_demo(seed, share, sizes, train_hash, test_hash):
    """The published accuracies belong to exactly these rows in this order."""
    questions = demo.questions(seed=seed)
    rows = [data.to_row(raw, n) for n, raw in enumerate(questions, start=1)]
    train, test = data.split(rows, share, 0)
    assert (len(train), len(test)) == sizes
    assert (digest(train), digest(test)) == (train_hash, test_hash)


@pytest.mark.slow
def test_steps_on_the_demo_give_the_published_rows(tokenizer, capsys):
    """The steps of 01_create_dataset with its defaults."""
    rows, _ = data.load("demo")
    rows, _ = data.drop_long(rows, data.token_lengths(rows, tokenizer), 512)
    rows, _ = data.drop_special_tokens(rows, tokenizer)
    rows = [row for row in rows if "as an ai" not in data.answer_of(row).casefold()]
    rows, _ = data.drop_exact(rows)
    rows = without_near_duplicates(rows)
    train, test = data.split(rows, 0.5, 0)
    assert (len(train), len(test)) == (980, 990)
    assert (digest(train), digest(test)) == ("8b192cbebbe193c5", "393ea5ec8de71d2b")
    assert "split: 197 groups in the column" in capsys.readouterr().out


# --- a user's groups -----------------------------------------------------------------


def test_split_by_the_groups_of_a_users_csv(tmp_path, capsys):
    """Groups are text or numbers; rows with a blank group are split one by one."""
    lines = ["question;answer;group"]
    for n in range(60):
        lines.append(f"What is fact number {n}?;f{n};{('7', ' ', 'a')[n % 3]}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    rows, _ = data.load(str(tmp_path / "mine.csv"))
    capsys.readouterr()
    train, test = data.split(rows, 0.4, 0)
    out = "split: 2 groups in the column `group` stay together\n"
    assert capsys.readouterr().out == out
    assert len(train) + len(test) == 60
    assert not {r["group"] for r in train} & {r["group"] for r in test} - {""}
    assert "" in {r["group"] for r in train} and "" in {r["group"] for r in test}


def test_split_without_groups_prints_nothing(capsys):
    data.split([row(f"question number {n}") for n in range(9)], 0.3, 0)
    assert capsys.readouterr().out == ""


def test_split_of_one_group_names_the_column():
    rows = [row(f"question number {n}", group="all") for n in range(9)]
    with pytest.raises(ValueError, match=r"leaves 1 sets.*remove the column `group`"):
        data.split(rows, 0.3, 0)


@pytest.mark.slow
def test_split_with_as_many_groups_as_rows():
    rows = [row(f"fact {n}", group=f"g{n}") for n in range(3000)]
    train, test = data.split(rows, 0.5, 0)
    assert len(train) == len(test) == 1500


def test_preferences_with_one_prompt_stay_together():
    """Also if they differ in the worse answer."""
    trees = ("oak", "elm", "ash", "yew", "fir", "box", "bay", "fig", "hop", "ivy")

    def turn(role: str, text: str) -> dict:
        return {"role": role, "content": text}

    rows = [
        {
            "prompt": [turn("user", f"Which plant grows in {tree.title()} Street?")],
            "chosen": [turn("assistant", f"The {tree}.")],
            "rejected": [turn("assistant", worse)],
            "line": n,
        }
        for n, (tree, worse) in enumerate(
            itertools.product(trees, ("Ask somebody.", "No idea at all, sorry."))
        )
    ]
    train, test = data.split(rows, 0.3, 0)
    assert len(test) == 6
    assert not {data.prompt_of(r) for r in train} & {data.prompt_of(r) for r in test}


# --- rows that share a text -----------------------------------------------------------


def dialogue(turns: list[str], line: int, weights: dict[int, int] | None = None):
    """Return a row whose turns are those of the user and the assistant by turns."""
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(turns)
    ]
    for i, weight in (weights or {}).items():
        messages[i]["weight"] = weight
    return {"messages": messages, "line": line}


BIRDS = ("heron", "stork", "raven", "finch", "eagle", "robin", "crane", "swift")


def talk(bird: str) -> list[str]:
    """Return the turns of a dialogue about a bird."""
    return [
        f"Where does the {bird} nest?",
        f"In the marsh {bird.upper()} by the mill.",
        "And what do its young eat in the first weeks?",
        f"Whatever the parents of a {bird} find there.",
        "Thanks!",
        "You're welcome.",
    ]


@pytest.mark.parametrize("seed", range(4))
def test_growing_beginnings_of_a_dialogue_stay_together(seed):
    rows = [
        dialogue(talk(bird)[:end], 10 * n + end)
        for n, bird in enumerate(BIRDS)
        for end in (2, 4, 6)
    ]
    assert data.near_duplicates(rows) == list(range(len(rows)))
    train, test = data.split(rows, 0.5, seed)
    sides = [{row["line"] // 10 for row in part} for part in (train, test)]
    assert len(sides[0]) == len(sides[1]) == 4 and not sides[0] & sides[1]


def test_a_beginning_that_most_rows_share_relates_none():
    """Two examples before each question are no dialogue that grows."""
    examples = ["Is a stone alive?", "No.", "Is a tree alive?", "Yes."]
    rows = [
        dialogue([*examples, f"Is a {bird} of the town alive?", "Yes."], n)
        for n, bird in enumerate(BIRDS)
    ]
    train, test = data.split(rows, 0.5, 0)
    assert len(train) == len(test) == 4


@pytest.mark.parametrize("seed", range(3))
def test_middles_of_a_text_stay_together(seed, capsys):
    texts = [
        {
            "text": "\n".join(f"the {bird} has line {n} of it" for n in range(9)),
            "line": i,
        }
        for i, bird in enumerate(BIRDS)
    ]
    train, test = data.split(data.middles(texts, each=6, seed=seed), 0.5, seed)
    lines = [{row["line"] for row in part} for part in (train, test)]
    assert len(train) == len(test) == 24 and not lines[0] & lines[1]
    assert "split: 8 texts that rows share" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_differ_in_trained_turns_stay_together(seed):
    rows = [
        dialogue(talk(bird)[:4], n, weights)
        for n, bird in enumerate(BIRDS)
        for weights in ({}, {1: 0}, {3: 0})
    ]
    assert data.near_duplicates(rows) == list(range(len(rows)))
    train, test = data.split(rows, 0.5, seed)
    sides = [{row["line"] for row in part} for part in (train, test)]
    assert len(train) == len(test) == 12 and not sides[0] & sides[1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99))
def test_a_share_that_the_error_advises_can_be_split(sizes, seed):
    related = [number for number, size in enumerate(sizes) for _ in range(size)]
    with pytest.raises(ValueError, match="TEST_SHARE from") as error:
        splitting.choose(related, 0.0, seed)
    ends = re.search(r"from (\S+) to (\S+),", str(error.value))
    low, high = (float(end) for end in ends.groups())
    for share in (low + 1e-4, (low + high) / 2, high - 1e-4):  # printed with 4 digits
        if low <= share <= high:
            test = splitting.choose(related, share, seed)
            assert any(test) and not all(test)
