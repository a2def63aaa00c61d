"""Near duplicates: precision and recall on planted repeats and look-alikes.

    python bench/dedup.py --folder DATA [--seeds 0 1 2 3] [--show 5]

DATA has gsm8k-train.jsonl and code-alpaca-2k.json. The rows named `unknown` and
`held_out` are repeats with boilerplate that no word list was written for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import planting

from colab_utils.data.repeats.engine import Repeats
from colab_utils.data.repeats.groups import SIMILAR

Texts = tuple[str, str]
KNOWN = [*planting.EDITS, "two"]  # "two" edits, one after the other


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


def plant(rows: list[Texts], seed: int, each: int, edits: list[str]):
    """Return rows as (texts, the row that they repeat, the row they come from, edit)."""
    draw = random.Random(seed)
    words = [w for p, _ in rows for w in p.split() if w.isalpha() and len(w) >= 4]
    out = [(row, None, i, "original") for i, row in enumerate(rows)]
    for kind in edits:
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


def quality(name, rows, seed, edits, show=0, curve=False):
    """Plant 100 repeats of each edit, and print how many of them are found."""
    mixed = plant(rows, seed, 100, edits)
    pairs = find([m[0] for m in mixed])
    source = [m[2] for m in mixed]
    planted = {i for i, m in enumerate(mixed) if m[1] is not None}
    repeat = planted | {i for i, m in enumerate(mixed) if m[3] == "original"}
    for t in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99) if curve else (SIMILAR,):
        found, wrong = set(), []
        for p in pairs:
            if p.similarity < t:
                continue
            if source[p.first] == source[p.second] and {p.first, p.second} <= repeat:
                found |= {p.first, p.second} & planted
            else:
                wrong.append(p)
        rejected = {p.second for p in wrong}
        recall = len(found) / len(planted)
        precision = len(found) / (len(found) + len(rejected))
        missed = Counter(mixed[i][3] for i in planted - found)
        print(
            f"{name:12} seed {seed} threshold {t:.2f} recall {100 * recall:5.1f} % "
            f"precision {100 * precision:6.2f} % missed {dict(missed)} "
            f"wrong {[tuple(mixed[i][3] for i in p[:2]) for p in wrong]}"
        )
    for i in sorted(planted - found)[:show]:
        print("MISSED", mixed[i][3], mixed[i][0], rows[mixed[i][1]], sep="\n  ")
    for p in wrong[:show]:
        print("WRONG", p, mixed[p.first], mixed[p.second], sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--curve", action="store_true")
    o = parser.parse_args()
    for name in ("code-alpaca", "gsm8k"):
        rows = load(o.folder, name)
        pairs = find(rows)
        natural = {p.second for p in pairs if p.similarity >= SIMILAR}
        print(f"# {name}: {len(rows):,} rows, {len(natural)} of them near repeats")
        for p in pairs[: o.show]:
            print(p, *rows[p.first], "|||", *rows[p.second], sep="\n")
        rows = [row for i, row in enumerate(rows) if i not in natural]
        for edits in (KNOWN, *([kind] for kind in planting.UNKNOWN)):
            for seed in o.seeds:
                quality(name, rows, seed, edits, o.show, o.curve)
