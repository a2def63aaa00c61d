"""Build a dataset with `datasets.map`, for ten million rows and more.

    python bench/data_map.py FOLDER [PROCESSES]

Reads FOLDER/*.jsonl and writes train.jsonl, test.jsonl and rejected.jsonl to
FOLDER/mapped, with the functions of `data.build`. `datasets` keeps the rows in Arrow
files on the disk and shares the work among the processes. A run that was interrupted
continues after the last finished step. The RAM holds about 1 KB a row while
repeats are searched for. Prints the seconds of each step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np

from colab_utils.data import saving, splitting
from colab_utils.data.curation import quality
from colab_utils.data.files.readers import NOT_JSON, Numbered
from colab_utils.data.large import stages
from colab_utils.data.large.spool import COLUMNS, parse, parts, repeats
from colab_utils.data.repeats.dedup import texts_of
from colab_utils.data.repeats.engine import Repeats
from colab_utils.data.schema import Rejected, reject, reject_row

KIND = "instruction"
RULES = (quality.echo, quality.refusal)


def items(lines: list[str], numbers: list[int]) -> Iterator[Numbered | Rejected]:
    """Yield the raw rows of JSON lines."""
    for line, number in zip(lines, numbers, strict=True):
        try:
            yield number + 1, json.loads(line)
        except ValueError as error:
            yield reject(number + 1, f"{NOT_JSON}: {error}", line)


def read(batch: dict, indices: list[int]) -> dict:
    """Return the rows that are kept, and the rejected ones with `kept` = False."""
    made = stages.read(KIND, RULES, [*items(batch["text"], indices)])
    rejected = [*made.rejected, *(row for _, row in made.filtered)]
    lines = [line.decode() for line in made.lines]
    lines += [saving.to_line(row.as_dict()) for row in rejected]
    kept = np.arange(len(lines)) < len(made.lines)
    found = np.zeros(len(lines), [(n, COLUMNS[n]) for n in ("key", "key2", "line")])
    compared = [*map(texts_of, made.rows)]
    numbers = stages.numbers(made.rows, made.lines, compared)
    found[kept] = numbers[[*found.dtype.names]]
    found["line"][~kept] = [row.line for row in rejected]
    columns = {name: found[name] for name in found.dtype.names}
    return {"row": lines, "kept": kept, **columns}


def texts(rows, kept: np.ndarray, of: Callable) -> Iterator[list[tuple[str, str]]]:
    """Yield the texts of the kept rows, by which they are compared."""
    for part in parts(kept.tolist(), 5000):
        yield [of(parse(line)) for line in rows[part]["row"]]


def first_of(rows, kept: np.ndarray, of: Callable) -> np.ndarray:
    """Return for each kept row the place of the first one that it nearly repeats."""
    found = Repeats()
    for batch in texts(rows, kept, of):
        found.add(batch)
    return found.first(lambda places: next(texts(rows, kept[places], of), []))


def together(rows, kept: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the groups of the kept rows and the texts that they share."""
    groups: list[str] = []
    shared = [np.empty((0, 3), np.uint64)]
    for part in parts(kept.tolist(), 5000):
        some = [*map(parse, rows[part]["row"])]
        found = splitting.shared_texts(some)
        found[:, 0] += len(groups)
        shared.append(found)
        groups += [row.get("group", "") for row in some]
    return groups, np.concatenate(shared)


def main(folder: Path, processes: int) -> None:
    """Read, filter, drop repeats, split and write."""
    from datasets import load_dataset

    began = time.time()

    def step(name: str, count: int) -> None:
        print(f"{name:24}{count:>12,} rows {time.time() - began:>9.1f} s", flush=True)

    files = sorted(map(str, folder.glob("*.jsonl")))
    raw = load_dataset(
        "text", data_files=files, split="train", cache_dir=folder / "arrow"
    )
    step("read", len(raw))
    options = {"batched": True, "batch_size": 500, "with_indices": True}
    rows = raw.map(read, num_proc=processes, remove_columns=["text"], **options)
    numbers = rows.select_columns(["key", "key2", "kept", "line"]).with_format("numpy")
    columns = {name: np.asarray(numbers[name][:]) for name in numbers.column_names}
    kept = np.flatnonzero(columns["kept"])
    step("kept by the rules", len(kept))

    keys = np.empty(len(kept), [("key", "u8"), ("key2", "u8")])
    keys["key"], keys["key2"] = columns["key"][kept], columns["key2"][kept]
    first = repeats(keys)
    same = first != np.arange(len(first))
    again = [
        (i, j, "repeats") for i, j in zip(kept[same], kept[first[same]], strict=True)
    ]
    kept = kept[~same]
    step("no exact duplicates", len(kept))

    first = first_of(rows, kept, texts_of)
    near = first != np.arange(len(first))
    pairs = zip(kept[near], kept[first[near]], strict=True)
    again += [(i, j, "nearly repeats") for i, j in pairs]
    kept = kept[~near]
    step("no near duplicates", len(kept))

    first = first_of(rows, kept, splitting.split_texts)
    related = splitting.related(first.tolist(), *together(rows, kept))
    test = np.array(splitting.choose(related, 0.1, 0))
    out = folder / "mapped"
    out.mkdir(exist_ok=True)
    for name, chosen in (("train", kept[~test]), ("test", kept[test])):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for part in parts(chosen.tolist(), 5000):
                file.writelines(rows[part]["row"])
    with (out / "rejected.jsonl").open("w", encoding="utf-8") as file:
        for part in parts(np.flatnonzero(~columns["kept"]).tolist(), 5000):
            file.writelines(rows[part]["row"])
        for i, j, how in again:
            row = parse(rows[int(i)]["row"].encode())
            reason = f"{how} line {columns['line'][j]}"
            file.write(saving.to_line(reject_row(row, reason).as_dict()))
    step("written", len(kept))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 2)
