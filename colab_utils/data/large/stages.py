"""What the worker processes of `build` do with a part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from colab_utils.data import describing, loading, saving, splitting
from colab_utils.data.curation.quality import Rule, filter_rows
from colab_utils.data.files.readers import Numbered
from colab_utils.data.large.spool import COLUMNS, LABELS, parse
from colab_utils.data.repeats.dedup import exact_key, texts_of
from colab_utils.data.schema import Rejected, Row, prompt_of
from colab_utils.data.shapes.formats import Tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colab_utils.data.repeats.engine import Job
    from colab_utils.data.repeats.fingerprints import Fingerprints


@dataclass
class Part:
    """What a process makes of some raw rows.

    `rows` are those that the rules keep, `lines` their lines, and `found` what was
    found for each. `filtered` are the others with what was found for them: the kind of
    the dataset is not known yet, and a row of another kind is rejected for its kind.
    `columns` are (what was found, the columns of a row).
    """

    rejected: list[Rejected]
    tally: Tally
    rows: list[Row] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    filtered: list[tuple[str, Rejected]] = field(default_factory=list)
    columns: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def read(kind: str, rules: Sequence[Rule], items: list[Numbered | Rejected]) -> Part:
    """Bring raw rows into the schema, and apply the rules to each."""
    loaded = loading.convert(items, kind)
    made = Part(loaded.rejected, loaded.tally)
    made.rows, bad = filter_rows(loaded.rows, rules)
    kept, filtered = iter([*made.rows, None]), iter(bad)
    following = next(kept)
    for row, found in zip(loaded.rows, loaded.found, strict=True):
        made.columns.add((found, tuple(row)))
        if row is not following:
            made.filtered.append((found, next(filtered)))
            continue
        following = next(kept)
        made.found.append(found)
        describing.note_keys(row, made.keys)
        made.lines.append(saving.to_line(saving.to_text(row)).encode())
    return made


def numbers(
    rows: list[Row], lines: list[bytes], texts: list[tuple[str, str]]
) -> NDArray[Any]:
    """Return `spool.COLUMNS` of rows, without what was found for them.

    `texts` are those by which the rows are compared: each has the answer.
    """
    import numpy as np

    made = np.zeros(len(rows), np.dtype([*COLUMNS.items()]))
    keys = np.frombuffer(b"".join(map(exact_key, rows)), ">u8").reshape(-1, 2)
    made["key"], made["key2"] = keys.T
    made["line"] = [row["line"] for row in rows]
    made["size"] = [*map(len, lines)]
    made["answer"] = [len(answer) for _, answer in texts]
    made["characters"] = [len(prompt_of(row)) for row in rows]
    made["characters"] += made["answer"]
    for i, name in enumerate(LABELS):
        made["labels"] |= np.array([(name in row) << i for row in rows], np.uint8)
    return made


@dataclass
class Compared:
    """The numbers of rows, their groups or "", and the fingerprints of their texts.

    `texts` are of those by which rows are compared, `prompts` of those of the split.
    `shared` is what `splitting.shared_texts` returns.
    """

    numbers: NDArray[Any]
    groups: list[str]
    shared: NDArray[np.uint64]
    texts: Fingerprints
    prompts: Fingerprints


def read_and_compare(
    kind: str, rules: Sequence[Rule], items: list[Numbered | Rejected]
) -> tuple[Part, Compared]:
    """Return what `read` does, without the rows, and all by which they are compared."""
    from colab_utils.data.repeats.hashes import keep_freed_memory

    keep_freed_memory()
    made = read(kind, rules, items)
    rows, made.rows = made.rows, []
    texts = [*map(texts_of, rows)]
    prints = fingerprints(texts, [*map(splitting.split_texts, rows)])
    groups = [row.get("group", "") for row in rows]
    shared = splitting.shared_texts(rows)
    found = numbers(rows, made.lines, texts)
    return made, Compared(found, groups, shared, *prints)


def fingerprints(
    texts: list[tuple[str, str]], prompts: list[tuple[str, str]]
) -> tuple[Fingerprints, Fingerprints]:
    """Return the fingerprints of texts, and of those that the split compares."""
    from colab_utils.data.repeats.fingerprints import (
        fingerprint,
        join,
        pieces,
        with_prompts,
    )

    if prompts == [(asked, "") for asked, _ in texts]:
        both = map(with_prompts, pieces(texts))
        one, other = (join([*part]) for part in zip(*both, strict=True))
        return one, other
    one, other = (
        join([*map(fingerprint, pieces(batch))]) for batch in (texts, prompts)
    )
    return one, other


def compare(
    texts: Callable[[Row], tuple[str, str]],
    table: Callable[[], NDArray[np.uint32]],
    job: Job,
) -> list[Any]:
    """Compare pairs of rows, given as their lines; see `engine.compare`."""
    from colab_utils.data.repeats import engine

    lines, pairs = job
    return engine.compare(table(), [texts(parse(line)) for line in lines], pairs)
