"""Duplicates: precision and recall on planted repeats; and the speed on many rows."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import planting

from colab_utils.data.repeats.engine import Repeats
from colab_utils.data.repeats.groups import SIMILAR

Texts = tuple[str, str]


def find(rows):
    repeats = Repeats()
    repeats.add(rows)
    return sorted(repeats.pairs(lambda indices: [rows[i] for i in indices]))


def load(folder: Path, name: str) -> list[Texts]:
    if name == "gsm8k":
        raw = map(json.loads, (folder / "gsm8k-train.jsonl").open())
        return [(r["question"], r["answer"]) for r in raw]
    raw = json.loads((folder / "code-alpaca-2k.json").read_text())
    return [(f"{r['instruction']}\n{r['input']}".strip(), r["output"]) for r in raw]


def other_input(draw, row, rows):
    instruction, _, text = row[0].partition("\n")
    if len(text) < 5:
        raise IndexError
    return instruction + "\n" + draw.choice([p for p, _ in rows if "\n" in p]).split(
        "\n", 1
    )[1], row[1]


def plant(rows: list[Texts], seed: int, each: int):
    draw = random.Random(seed)
    words = [w for p, _ in rows for w in p.split() if w.isalpha() and len(w) >= 4]
    out = [(row, None, i, "original") for i, row in enumerate(rows)]
    for kind in [*planting.EDITS, "two"]:
        for i in draw.sample(range(len(rows)), each):
            kinds = draw.sample(list(planting.EDITS), 2) if kind == "two" else [kind]
            new = rows[i]
            for k in kinds:
                new = planting.near(draw, new, k)
            if new != rows[i]:
                out.append((new, i, i, kind))
    hard = {
        "other numbers": planting.other_numbers,
        "other number in prompt": planting.other_number_in_prompt,
        "other name": planting.other_name,
        "other word": lambda d, r: planting.other_word(d, r, words),
        "other answer": lambda d, r: (r[0], draw.choice(rows)[1]),
        "other input": lambda d, r: other_input(d, r, rows),
    }
    for kind, make in hard.items():
        for i in draw.sample(range(len(rows)), each):
            try:
                new = make(draw, rows[i])
            except IndexError:
                continue
            if new != rows[i]:
                out.append((new, None, i, kind))
    draw.shuffle(out)
    return out


def quality(rows, seed, each, show=0):
    pairs = find(rows)
    natural = {p.second for p in pairs if p.similarity >= SIMILAR}
    if show:
        for p in pairs[:show]:
            print(p, *rows[p.first], "|||", *rows[p.second], sep="\n")
    rows = [r for i, r in enumerate(rows) if i not in natural]
    mixed = plant(rows, seed, each)
    start = time.process_time()
    pairs = find([m[0] for m in mixed])
    seconds = time.process_time() - start
    print(f"{len(mixed)} rows, {len(natural)} natural repeats, {seconds:.1f} s")
    source = [m[2] for m in mixed]
    planted = {i for i, m in enumerate(mixed) if m[1] is not None}
    repeat = planted | {i for i, m in enumerate(mixed) if m[3] == "original"}
    for t in (0.3, 0.5, SIMILAR, 0.7, 0.8, 0.9, 0.99):
        found, wrong = set(), []
        for p in pairs:
            if p.similarity < t:
                continue
            if source[p.first] == source[p.second] and {p.first, p.second} <= repeat:
                found |= {p.first, p.second} & planted
            else:
                wrong.append(p)
        total = Counter(mixed[i][3] for i in planted)
        hit = Counter(mixed[i][3] for i in found)
        rejected = {p.second for p in wrong}
        recall = len(found) / len(planted)
        precision = len(found) / (len(found) + len(rejected))
        print(f"{t:.2f} recall {recall:.4f} precision {precision:.4f}")
        if t == SIMILAR:
            print(
                {k: f"{hit[k]}/{total[k]}" for k in total},
                Counter(mixed[i][3] for p in wrong for i in p[:2]),
            )
            if show:
                for i in sorted(planted - found)[:show]:
                    print(
                        "MISSED", mixed[i][3], mixed[i][0], "\n   ", rows[mixed[i][1]]
                    )
                for p in wrong[:show]:
                    print(
                        "WRONG",
                        p,
                        mixed[p.first][3],
                        mixed[p.second][3],
                        mixed[p.first][0],
                        "\n    ",
                        mixed[p.second][0],
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--show", type=int, default=0)
    o = parser.parse_args()
    for name in ("code-alpaca", "gsm8k"):
        print("#", name)
        quality(load(o.folder, name), 0, 100, o.show)
