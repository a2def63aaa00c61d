"""Measure `data.build` on a million rows, next to datasketch and text-dedup.

    python bench/data.py FOLDER [ROWS]

Writes ROWS rows (default 1,000,000, about 1 KB each) to FOLDER, which needs four times
their size: 5 % repeat another row (exactly, or with a few edits), 1 % can't be used.
Then measures, each in a process of its own: `data.build` with two processes, and on the
first 20,000 rows the search for near duplicates by itself (ours, one process), by
datasketch's MinHashLSH (one process) and by text-dedup's minhash (two processes). Also
measures our search in 200,000 rows of 20 words, which are random (short) or two
sentences with other names (template); 5 % of both repeat another row.
RIVALS names a folder with datasketch and text-dedup; without it, those two are left
out. Writes bench/results/data.json: seconds, rows a second, the peak RSS of all
processes together, and how many of the planted rows were found.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from sampling import each

OUT = Path(__file__).parent / "results" / "data.json"
WORKERS = 2
SUBSET, SHORT = 20_000, 200_000
EXACT, NEAR, BAD = "exact", "near", "bad"
STEPS = ("read", "drop_exact", "drop_near", "split", "write")


def vocabulary() -> list[str]:
    """Return 50,000 words of two to nine letters."""
    draw, letters = random.Random(0), "etaoinshrdlcumwfgypbvk"
    made = {"".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(60_000)}
    return sorted(made)[:50_000]


LONG = ((15, 60), (70, 170))  # the words of a question, and of an answer


def texts(
    rows: int, words: tuple[tuple[int, int], ...] = LONG
) -> Iterator[tuple[str, str]]:
    """Yield questions and answers of random words, as frequent as Zipf says."""
    import numpy as np

    draw, known = np.random.default_rng(0), vocabulary()
    draw.shuffle(known)
    weights = np.cumsum(1 / (np.arange(len(known)) + 3))
    for start in range(0, rows, 1000):
        sizes = draw.integers(*zip(*words, strict=True), (min(1000, rows - start), 2))
        drawn = np.searchsorted(weights, draw.random(sizes.sum()) * weights[-1])
        found = iter([known[i] for i in drawn.tolist()])
        for one, other in sizes.tolist():
            question = " ".join(itertools.islice(found, one))
            yield question, " ".join(itertools.islice(found, other))


def edited(draw: random.Random, text: str) -> str:
    """Return a text with one to four words swapped, misspelled or in capitals.

    A word that is lost or replaced is left out: such rows may differ on purpose.
    """
    found = text.split()
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) - 1)
        edit = draw.randrange(3)
        if edit == 0:
            found[at : at + 2] = found[at : at + 2][::-1]
        elif edit == 1:
            found[at] = found[at].upper()
        else:
            # A short word with another letter is often another word.
            at = max(range(len(found)), key=lambda i: len(found[i]))
            found[at] = found[at][0] + found[at][2:]
    return " ".join(found)


def make(folder: Path, rows: int) -> None:
    """Write rows.jsonl, and planted.json: the lines of each kind of planted row."""
    draw = random.Random(0)
    planted: dict[str, list[int]] = {EXACT: [], NEAR: [], BAD: []}
    earlier: list[tuple[str, str]] = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for line, (question, answer) in enumerate(texts(rows), start=1):
            chance = draw.random()
            if chance < 0.05 and len(earlier) > 100:
                question, answer = draw.choice(earlier)
                kind = EXACT if chance < 0.02 else NEAR
                if kind == NEAR:
                    question, answer = edited(draw, question), edited(draw, answer)
                planted[kind].append(line)
            elif chance < 0.06:
                answer = ""
                planted[BAD].append(line)
            elif chance < 0.16:
                earlier.append((question, answer))
            row = {"instruction": question, "output": answer}
            file.write(json.dumps(row) + "\n")
    (folder / "planted.json").write_text(json.dumps(planted))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Memory(threading.Thread):
    """Samples the RSS of this process and its children: `with Memory() as m: ...`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.peak = threading.Event(), 0

    def run(self) -> None:
        import psutil

        this = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for process in [this, *this.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            self.peak = max(self.peak, total)

    def __enter__(self) -> Memory:
        self.began, self.cpu = time.time(), cpu_seconds()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu = time.time() - self.began, cpu_seconds() - self.cpu
        self.done.set()
        self.join()

    def result(self, rows: int) -> dict[str, float]:
        """Return seconds, rows a second, and the peak in GiB.

        On a machine that does other work, too, the CPU seconds tell more.
        """
        return {
            "rows": rows,
            "seconds": round(self.seconds, 1),
            "rows_a_second": round(rows / self.seconds),
            "cpu_seconds": round(self.cpu, 1),
            "rows_a_cpu_second": round(rows / self.cpu),
            "peak_gib": round(self.peak / 2**30, 2),
        }


@contextlib.contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Measure each step of `data.build`."""
    from colab_utils.data.large import building

    def wrap(name: str) -> None:
        step = getattr(building._Job, name)

        def measured(*args: object) -> object:
            began = time.time()
            made = step(*args)
            seconds[name] = round(time.time() - began, 1)
            return made

        setattr(building._Job, name, measured)

    for name in STEPS:
        wrap(name)
    yield


def build(folder: Path) -> dict:
    """Measure the whole pipeline; compare its rejected rows with the planted ones."""
    from colab_utils import data

    steps: dict[str, float] = {}
    printed = io.StringIO()
    with timed(steps), contextlib.redirect_stdout(printed), Memory() as memory:
        made = data.build(
            str(folder / "rows.jsonl"), folder / "made", workers=WORKERS, rules=rules()
        )
    planted = {
        kind: set(lines)
        for kind, lines in json.loads((folder / "planted.json").read_text()).items()
    }
    lines: dict[str, set[int]] = {EXACT: set(), NEAR: set(), BAD: set()}
    for row in data.read_jsonl(folder / "made" / "rejected.jsonl"):
        starts = {"repeats": EXACT, "nearly": NEAR}
        lines[starts.get(row["reason"].split()[0], BAD)].add(row["line"])
    found = {
        kind: {
            "planted": len(planted[kind]),
            "found": len(planted[kind] & lines[kind]),
            "others": len(lines[kind] - planted[kind]),
        }
        for kind in planted
    }
    size = (folder / "rows.jsonl").stat().st_size / 2**30
    rows = made["rows"]
    return {
        "way": "build",
        "gib": round(size, 2),
        "steps": steps,
        **memory.result(rows["in"]),
        "files": rows,
        "rejected": found,
    }


def rules() -> list:
    """Return the rules of 01_create_dataset."""
    from colab_utils.data.curation import quality

    return [quality.echo, quality.refusal]


def subset(folder: Path) -> list[tuple[str, str]]:
    """Return prompts and answers of the first rows."""
    texts = []
    with (folder / "rows.jsonl").open() as file:
        for line, _ in zip(file, range(SUBSET), strict=False):
            row = json.loads(line)
            texts.append((row["instruction"], row["output"]))
    return texts


def recall(folder: Path, repeats: set[int], rows: int) -> dict[str, int]:
    """Return how many of the planted repeats are among those found (from 0)."""
    planted = json.loads((folder / "planted.json").read_text())
    lines = {n - 1 for n in planted[EXACT] + planted[NEAR] if n <= rows}
    # Rows without an answer are rejected before; their questions may be alike.
    bad = {n - 1 for n in planted[BAD]}
    return {
        "planted": len(lines),
        "found": len(lines & repeats),
        "others": len(repeats - lines - bad),
    }


def search(texts: list[tuple[str, str]]) -> tuple[set[int], dict[str, float]]:
    """Search for near duplicates in one process; return them and what it took."""
    from colab_utils.data.repeats.engine import Repeats

    with Memory() as memory:
        found = Repeats()
        found.add(texts)
        first = found.first(lambda indices: [texts[i] for i in indices])
    repeats = {i for i, j in enumerate(first.tolist()) if i != j}
    return repeats, memory.result(len(texts))


def ours(folder: Path) -> dict:
    """Measure the search for near duplicates in one process."""
    texts = subset(folder)
    repeats, result = search(texts)
    return {"way": "ours", **result, **recall(folder, repeats, len(texts))}


def short(_: Path) -> dict:
    """Measure the search in short rows of random words."""
    return {"way": "short", **planted_and_found(texts(SHORT, ((12, 13), (8, 9))))}


def template(_: Path) -> dict:
    """Measure the search in rows of two sentences with other names."""
    draw, words = random.Random(0), vocabulary()
    names, answers = draw.sample(words, 3000), draw.sample(words, 500)
    parts = ["capital", "currency", "continent", "language"]
    rows = (
        (
            f"What is the {draw.choice(parts)} of {draw.choice(names).title()}, as far "
            "as you know about it?",
            f"It is {draw.choice(answers)} of course, as all of the people there know.",
        )
        for _ in range(SHORT)
    )
    return {"way": "template", **planted_and_found(rows)}


def planted_and_found(rows: Iterator[tuple[str, str]]) -> dict[str, float]:
    """Repeat 5 % of the rows with edits, and count those that the search finds."""
    draw = random.Random(0)
    texts, planted = [], set()
    for question, answer in rows:
        texts.append((question, answer))
        if draw.random() < 0.05:
            planted.add(len(texts))
            texts.append((edited(draw, question), answer))
    repeats, result = search(texts)
    return {**result, "planted": len(planted), "found": len(planted & repeats)}


def datasketch(folder: Path) -> dict:
    """Measure datasketch's MinHashLSH over pairs of words, as its manual uses it."""
    from datasketch import MinHash, MinHashLSH

    texts = subset(folder)
    repeats = set()
    with Memory() as memory:
        index = MinHashLSH(threshold=0.7, num_perm=128)
        for i, (question, answer) in enumerate(texts):
            found = f"{question} {answer}".lower().split()
            pairs = {f"{a} {b}".encode() for a, b in itertools.pairwise(found)}
            sketch = MinHash(num_perm=128)
            sketch.update_batch(pairs)
            if index.query(sketch):
                repeats.add(i)
            index.insert(i, sketch)
    result = memory.result(len(texts))
    return {"way": "datasketch", **result, **recall(folder, repeats, len(texts))}


def text_dedup(folder: Path) -> dict:
    """Measure text-dedup's minhash, with its own defaults and two processes."""
    rows = folder / "subset"
    rows.mkdir(exist_ok=True)
    texts = subset(folder)
    with (rows / "rows.jsonl").open("w") as file:
        for i, pair in enumerate(texts):
            file.write(json.dumps({"id": i, "text": " ".join(pair)}) + "\n")
    command = [sys.executable, "-m", "text_dedup.minhash", "--path", "json"]
    command += ["--data_files", str(rows / "rows.jsonl"), "--split", "train"]
    command += ["--output", str(folder / "text-dedup"), "--column", "text"]
    command += ["--cache_dir", str(folder / "cache"), "--num_proc", str(WORKERS)]
    with Memory() as memory:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    from datasets import load_from_disk

    kept = set(load_from_disk(str(folder / "text-dedup"))["id"])
    repeats = set(range(len(texts))) - kept
    result = memory.result(len(texts))
    return {"way": "text-dedup", **result, **recall(folder, repeats, len(texts))}


WAYS = {
    "build": build,
    "ours": ours,
    "short": short,
    "template": template,
    "datasketch": datasketch,
    "text-dedup": text_dedup,
}


def main(folder: Path, rows: int) -> None:
    """Write the rows if they are missing; run each way in a process, save results."""
    if not (folder / "planted.json").exists():
        make(folder, rows)
    ways = list(WAYS)[: None if "RIVALS" in os.environ else -2]
    os.environ["PYTHONPATH"] = os.environ.get("RIVALS", "")
    os.environ["HEADLESS"] = "1"
    found = each(__file__, folder, tuple(ways))
    OUT.write_text(json.dumps({"cores": WORKERS, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2] in WAYS:
        print(json.dumps(WAYS[sys.argv[2]](Path(sys.argv[1]))))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1_000_000)
