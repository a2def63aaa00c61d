"""A dataset built with its rows on disk is the one built with its rows in memory."""

from __future__ import annotations

import filecmp
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colab_utils import data, recipe
from colab_utils.data.curation import quality
from colab_utils.data.large import building, spool
from colab_utils.data.large.spool import Lines, Spool, repeats
from colab_utils.data.large.workers import AHEAD, Workers
from colab_utils.data.repeats.comparing import Comparer, Verdict
from colab_utils.data.repeats.dedup import exact_key

ROOT = Path(__file__).parents[2]
FILES = ("train.jsonl", "test.jsonl", "rejected.jsonl")
RULES = (quality.echo, quality.refusal)
WORDS = [f"w{n}" for n in range(400)]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def sentence(draw: random.Random, length: int = 25) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def raw_row(draw: random.Random, earlier: list[dict]) -> object:
    """Return a row of one of many kinds, most of them good."""
    chance = draw.random()
    if chance < 0.1 and earlier:
        return draw.choice(earlier)
    if chance < 0.2 and earlier:
        row = dict(draw.choice(earlier))
        row["answer"] = row["answer"].upper() + "!"
        return row
    row = {"question": sentence(draw), "answer": sentence(draw)}
    if chance < 0.25:
        return {**row, "answer": row["question"]}
    if chance < 0.3:
        return {**row, "answer": " "}
    if chance < 0.35:
        return {"prefix": "a = ", "middle": sentence(draw, 3), "suffix": "b"}
    if chance < 0.4:
        return {
            "prefix": "é = ",
            "middle": "I cannot assist",
            "suffix": "b",
            "group": "x",
        }
    if chance < 0.45:
        call = {"name": "add", "arguments": {"a": draw.randrange(99), "é": [1, None]}}
        turns = [
            {"role": "user", "content": sentence(draw)},
            {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
        ]
        return {"messages": turns, "tools": [TOOL]}
    if chance > 0.95:
        return {**row, "answer": [row["answer"], sentence(draw)]}
    if chance < 0.6:
        row["group"] = draw.choice("abcdef")
    if chance < 0.55:
        row["category"] = "é"
    earlier.append(row)
    return row


def write_source(path: Path, seed: int, rows: int = 400) -> Path:
    draw, earlier = random.Random(seed), []
    lines = [json.dumps(raw_row(draw, earlier)) for _ in range(rows)]
    for _ in range(5):
        lines.insert(draw.randrange(rows), draw.choice(['{"a": ', "[1, 2]", '"x"']))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build_from_lists(source: str, folder: Path, share: float, seed: int) -> None:
    """Do what 01_create_dataset does, with all rows in memory."""
    rows, rejected = data.load(source)
    rows, unworthy = data.filter_rows(rows, RULES)
    rows, exact = data.drop_exact(rows)
    first = data.near_duplicates(rows)
    near = [
        data.reject_row(rows[i], f"nearly repeats line {rows[j]['line']}")
        for i, j in enumerate(first)
        if i != j
    ]
    rows = [row for i, row in enumerate(rows) if first[i] == i]
    train, test = data.split(rows, share, seed)
    rejected += [*unworthy, *exact, *near]
    data.save(folder, {"train": train, "test": test}, rejected, "", source=source)


def same_files(one: Path, other: Path) -> list[str]:
    return [f for f in FILES if filecmp.cmp(one / f, other / f, shallow=False)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_build_equals_the_steps_with_lists(tmp_path, monkeypatch, seed):
    """For rows of several kinds, labels in some rows, repeats, and broken lines."""
    monkeypatch.setattr(building, "PART", 7)
    source = str(write_source(tmp_path / "raw.jsonl", seed))
    build_from_lists(source, tmp_path / "lists", 0.3, seed)
    made = data.build(
        source, tmp_path / "built", rules=RULES, test_share=0.3, seed=seed
    )
    assert same_files(tmp_path / "lists", tmp_path / "built") == [*FILES]
    rejected = data.read_jsonl(tmp_path / "built" / "rejected.jsonl")
    starts = {row["reason"].split()[0] for row in rejected}
    assert {"repeats", "nearly", "echo:", "a", "not"} <= starts
    train = data.read(tmp_path / "built", "train")
    assert any("tools" in row for row in train) and not all("tools" in r for r in train)
    counts = made["rows"]
    lines = sum(len((tmp_path / "lists" / f).read_bytes().splitlines()) for f in FILES)
    assert counts["in"] == lines == counts["kept"] + counts["rejected"]
    assert counts["kept"] == counts["train"] + counts["test"]
    assert (counts["train"], counts["rejected"]) == (len(train), len(rejected))
    assert data.check_kind(tmp_path / "built", "instruction") is None


@pytest.mark.slow
def test_build_of_the_demo_with_two_processes(tmp_path):
    """A rule from the script that calls it is sent to the processes."""
    build_from_lists("demo", tmp_path / "lists", 0.1, 0)
    made = data.build("demo", tmp_path / "built", rules=RULES, workers=2)
    assert same_files(tmp_path / "lists", tmp_path / "built") == [*FILES]
    assert made["metric"] == "accuracy" and made["license"] == "apache-2.0"


REBUILD = """
import sys
from pathlib import Path
from colab_utils import data, recipe
from colab_utils.data.curation import quality
old = recipe.read(Path("old"))
rules = [getattr(quality, name) for name in old["rules"]]
data.build(old["source"], Path("new"), rules=rules, **old["parameters"])
"""


@pytest.mark.slow
def test_recipe_builds_the_same_bytes_again(tmp_path):
    """In another process, with another seed of Python's hashes."""
    source = str(write_source(tmp_path / "raw.jsonl", 5))
    old = data.build(source, tmp_path / "old", rules=RULES, test_share=0.2, seed=3)
    subprocess.run(
        [sys.executable, "-c", REBUILD],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        check=True,
    )
    new = recipe.read(tmp_path / "new")
    names = {path.name for path in (tmp_path / "old").iterdir()} - {"recipe.json"}
    assert names == {*FILES, "README.md", "lengths.png"}
    differing = [
        name
        for name in sorted(names)
        if (tmp_path / "old" / name).read_bytes().replace(b"# old", b"# new")
        != (tmp_path / "new" / name).read_bytes()
    ]
    assert differing == []
    for made in (old, new):
        del made["made"], made["name"]
    assert new == old


def answers_are_short(row: data.Row) -> str | None:
    return None if len(data.answer_of(row)) < 3 else "long: too long"


def test_build_without_a_row_left(tmp_path):
    source = str(write_source(tmp_path / "raw.jsonl", 0, 60))
    with pytest.raises(ValueError, match=r"rules reject all \d+ rows \(\d+ x long: to"):
        data.build(source, tmp_path / "new", rules=[answers_are_short])
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"No row of .* can be used"):
        data.build(str(tmp_path / "bad.jsonl"), tmp_path / "new")
    scored = [{"prompt": "a", "completion": "b", "label": n > 3} for n in range(9)]
    data.write_jsonl(tmp_path / "scored.jsonl", scored)
    with pytest.raises(ValueError, match="marked as good or bad"):
        data.build(str(tmp_path / "scored.jsonl"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def breaks_at_line_300(row: data.Row) -> str | None:
    if row["line"] >= 300:
        raise ZeroDivisionError
    return None


def test_failed_build_leaves_the_old_dataset(tmp_path):
    folder = tmp_path / "saved" / "mine"
    data.save(folder, {"train": [{"text": "old", "line": 1}]}, [], "")
    source = str(write_source(tmp_path / "raw.jsonl", 0))
    with pytest.raises(ZeroDivisionError):
        data.build(source, folder, rules=[breaks_at_line_300])
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert data.read(folder, "train") == [{"text": "old", "line": 1}]


def test_full_disk_is_named(tmp_path, monkeypatch):
    class Full:
        def writelines(self, lines: list[bytes]) -> None:
            raise OSError(28, "No space left on device")

    lines = Lines()
    monkeypatch.setattr(lines, "file", Full())
    with pytest.raises(OSError, match=r"Rows can't be written to .*TMPDIR"):
        lines.write([b"a"])


def ends(part: list[int]) -> int:
    os._exit(3)


@pytest.mark.slow
def test_ended_process_is_reported():
    with (
        pytest.raises(RuntimeError, match="One of 2 worker processes ended early"),
        Workers(2) as pool,
    ):
        list(pool.map(ends, [[1], [2]]))


@pytest.mark.slow
def test_processes_keep_the_order_and_read_few_parts_ahead():
    read = []

    def parts():
        for n in range(40):
            read.append(n)
            yield [n]

    with Workers(2) as pool:
        ahead = []
        for n, total in enumerate(pool.map(sum, parts())):
            assert total == n
            ahead.append(len(read) - n)
    assert max(ahead) == 2 * AHEAD + 1


def test_repeats_finds_the_first_of_equal_keys():
    import numpy as np

    draw = np.random.default_rng(0)
    rows = np.zeros(500, [("key", "u8"), ("key2", "u8")])
    rows["key"], rows["key2"] = draw.integers(0, 12, 500), draw.integers(0, 9, 500)
    first: dict[tuple[int, int], int] = {}
    expected = [first.setdefault(tuple(row), i) for i, row in enumerate(rows.tolist())]
    assert repeats(rows).tolist() == expected
    assert repeats(rows[:0]).tolist() == []


def compare_later(pair: list[tuple[str, str]]) -> Verdict:
    time.sleep(0.05)  # so that both processes get parts
    return Comparer(lambda word: 9).compare(*pair)


@pytest.mark.slow
def test_processes_name_the_same_differences_alike():
    """Python's own hash of a text is another one in each process."""
    pair = [(f"What is the {word} of Norway?", "Oslo") for word in ("city", "port")]
    with Workers(2) as pool:
        found = set(pool.map(compare_later, [pair] * 20))
    assert len(found) == 1 and found.pop().slot is not None


def add_shared(load: Callable[[], Any], part: list[int]) -> int:
    return int(load()[part].sum())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_share_gives_all_processes_an_array(tmp_path, monkeypatch, count):
    import numpy as np

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Workers(count) as pool:
        load = pool.share(np.arange(10))
        work = functools.partial(add_shared, load)
        assert [*pool.map(work, [[1, 2], [3], [9, 9]])] == [3, 3, 18]
    assert [*tmp_path.iterdir()] == []


KILLED = """
import os, signal, numpy
from colab_utils.data.large.workers import Workers
if __name__ == "__main__":
    with Workers(2) as pool:
        load = pool.share(numpy.arange(10))
        assert [*pool.map(sum, [[1], [2]])] == [1, 2]
        print(len(os.listdir(os.environ["TMPDIR"])), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_process_leaves_no_shared_array(tmp_path):
    script, folder = tmp_path / "killed.py", tmp_path / "tmp"
    folder.mkdir()
    script.write_text(KILLED)
    run = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert (run.returncode, run.stdout) == (-9, "1\n")
    until = time.time() + 30
    while any(folder.iterdir()) and time.time() < until:
        time.sleep(0.1)
    assert [*folder.iterdir()] == []


def test_exact_keys_are_equal_for_equal_content():
    def instruction(turns: list[dict], **more: object) -> data.Row:
        return {"messages": turns, "line": 1, **more}

    call = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    other = {"function": {"arguments": {"b": 2, "a": 1}, "name": "add"}}
    ask, say = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    alike = [
        [instruction([ask, say]), instruction([{"content": "a", "role": "user"}, say])],
        [
            instruction([ask, {**say, "weight": 0}]),
            instruction([ask, say | {"weight": 0}]),
        ],
        [
            instruction([ask, {**say, "tool_calls": [c]}], tools=[TOOL])
            for c in (call, other)
        ],
        [{"text": "a", "line": 3}, {"line": 4, "group": "b", "text": "a"}],
        [{"text": "a", "label": "b", "line": 3}],
        [{"text": "ab", "label": "", "line": 3}],
        [{"prompt": [ask], "chosen": [say], "rejected": [ask], "line": 5}],
        [{"prompt": [ask], "chosen": [ask], "rejected": [say], "line": 6}],
        [instruction([ask, ask, say])],
    ]
    keys = [{exact_key(row) for row in rows} for rows in alike]
    assert [len(one) for one in keys] == [1] * len(alike)
    assert len(set.union(*keys)) == len(alike)


@pytest.mark.parametrize(
    "kept", [[], [0], [4], [0, 1, 2, 3, 4], [0, 2, 3], [1, 4], [0, 1, 3, 4]]
)
def test_blocks_are_the_lines_of_the_rows(kept, monkeypatch):
    """Neighbors are in one block, of at most `BLOCK` rows."""
    monkeypatch.setattr(spool, "BLOCK", 2)
    lines = [b"a\n", b"bb\n", b"ccc\n", b"\n", b"e\n"]
    numbers = np.zeros(len(lines), np.dtype([*spool.COLUMNS.items()]))
    numbers["size"] = [*map(len, lines)]
    rows = Spool()
    rows.add(lines, numbers, ["kind"] * 5, [""] * 5, np.empty((0, 3), np.uint64))
    rows.close()
    blocks = [*rows.blocks(np.array(kept, np.int64))]
    assert b"".join(blocks) == b"".join(lines[i] for i in kept)
    assert max((block.count(b"\n") for block in blocks), default=0) <= 2
    if kept == [0, 1, 2, 3, 4]:
        assert blocks == [b"a\nbb\n", b"ccc\n\n", b"e\n"]
