"""Answers are kept in a file: nothing is asked twice, whatever happens to a run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import creation

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "helpers" / "ask_and_keep.py"
WORKERS = 3  # of that program


class Counting:
    """A generator that counts how often it was asked each prompt."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.calls: list[int] = []

    def __call__(self, conversations):
        prompts = [turns[-1]["content"] for turns in conversations]
        self.asked.update(prompts)
        self.calls.append(len(prompts))
        return [f"{prompt}!" for prompt in prompts]


def turns(*prompts: str) -> list:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def test_kept_asks_each_prompt_once(tmp_path, capsys):
    ask, file = Counting(), tmp_path / "new" / "answers.jsonl"
    kept = creation.Kept(ask, file, {"model": "m"})
    assert kept(turns("a", "b", "a")) == ["a!", "b!", "a!"]
    assert kept(turns("b", "c")) == ["b!", "c!"]
    again = creation.Kept(ask, file, {"model": "m"})
    assert again(turns("c", "a")) == ["c!", "a!"]
    assert ask.asked == {"a": 1, "b": 1, "c": 1}
    assert capsys.readouterr().out.splitlines() == [
        "answers: 1 kept, 2 to ask",
        "answers: 1 kept, 1 to ask",
        "answers: 2 kept, 0 to ask",
    ]


def test_kept_asks_again_for_another_key(tmp_path):
    ask, file = Counting(), tmp_path / "a.jsonl"
    for key in ({"model": "m"}, {"model": "n"}, {"model": "m", "temperature": 0.5}):
        creation.Kept(ask, file, key)(turns("a"))
    assert ask.asked == {"a": 3}


def test_kept_sends_batches(tmp_path):
    ask = Counting()
    kept = creation.Kept(ask, tmp_path / "a.jsonl", {}, batch=3)
    assert kept(turns(*"abcdefg")) == [f"{x}!" for x in "abcdefg"]
    assert ask.calls == [3, 3, 1]


def test_kept_does_not_keep_empty_answers(tmp_path):
    file = tmp_path / "a.jsonl"
    empty = creation.Kept(lambda asked: [""] * len(asked), file, {})
    assert empty(turns("a")) == [""]
    assert creation.Kept(Counting(), file, {})(turns("a")) == ["a!"]


def test_kept_keeps_answers_before_an_error(tmp_path):
    def fail_at_c(conversations):
        if conversations[0][-1]["content"] == "c":
            raise ConnectionError("down")
        return ask(conversations)

    ask, file = Counting(), tmp_path / "a.jsonl"
    with pytest.raises(ConnectionError, match="down"):
        creation.Kept(fail_at_c, file, {})(turns(*"abcdef"))
    assert creation.Kept(ask, file, {})(turns(*"abcdef")) == [f"{x}!" for x in "abcdef"]
    assert ask.asked["a"] == ask.asked["b"] == 1


def test_kept_refuses_a_generator_that_loses_answers(tmp_path):
    kept = creation.Kept(lambda asked: asked[1:], tmp_path / "a.jsonl", {}, batch=9)
    with pytest.raises(ValueError, match="returned 2 texts for 3 conversations"):
        kept(turns("a", "b", "c"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None)  # it writes files
@given(st.lists(TEXTS, min_size=1, max_size=5, unique=True), st.data())
def test_kept_reads_a_file_torn_anywhere(prompts, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.jsonl"
        creation.Kept(Counting(), file, {})(turns(*prompts))
        size = data.draw(st.integers(0, file.stat().st_size))
        os.truncate(file, size)
        whole = creation.Kept(Counting(), file, {}).kept
        ask = Counting()
        assert creation.Kept(ask, file, {})(turns(*prompts)) == [
            f"{prompt}!" for prompt in prompts
        ]
        assert len(ask.asked) == len(prompts) - len(whole)
        last = Counting()
        creation.Kept(last, file, {})(turns(*prompts))
        assert not last.asked


def start(url: str, file: Path, first: int, last: int) -> subprocess.Popen:
    command = [sys.executable, PROGRAM, url, file, str(first), str(last)]
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | {"PYTHONPATH": str(ROOT), "HEADLESS": "1"},
        stdout=subprocess.DEVNULL,
    )


def texts(file: Path) -> set[str]:
    """Return the answers in whole lines."""
    found = set()
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            found.add(json.loads(line)["answer"])
        except ValueError:
            continue
    return found


@pytest.mark.slow
def test_killed_runs_pay_nothing_twice(server, tmp_path):
    """Only the calls that run at the moment of a kill can be made again."""
    server.usual, file, count = 0.02, tmp_path / "answers.jsonl", 150
    draw, kills = random.Random(0), 0
    while kills < 6:
        known, before = texts(file), len(server.seen)
        child = start(server.url, file, 0, count)
        while len(server.seen) == before and child.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        child.kill()
        child.wait()
        kills += 1
        time.sleep(0.1)  # the server ends the requests of the dead process
        asked = {f"answer to {one['prompt']}" for one in server.seen[before:]}
        assert asked and not asked & known
    assert 0 < len(texts(file)) < count
    assert start(server.url, file, 0, count).wait() == 0
    assert len(texts(file)) == count
    assert count <= len(server.seen) <= count + kills * WORKERS


@pytest.mark.slow
def test_two_processes_share_a_file(server, tmp_path):
    file = tmp_path / "answers.jsonl"
    server.usual = "answer " + "x" * 200_000  # longer than a page, or a pipe's buffer
    children = [start(server.url, file, 0, 60), start(server.url, file, 30, 90)]
    assert [child.wait() for child in children] == [0, 0]
    lines = [line for line in file.read_bytes().splitlines() if line]
    assert all(json.loads(line)["answer"] == server.usual for line in lines)
    assert len({json.loads(line)["name"] for line in lines}) == 90
