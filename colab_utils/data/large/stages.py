"""What the worker processes of `build` do with a part of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from colab_utils.data import describing, loading, saving, splitting
from colab_utils.data.curation.quality import Rule, filter_rows
from colab_utils.data.files.readers import Numbered
from colab_utils.data.large.spool import LABELS, parse
from colab_utils.data.repeats.dedup import exact_key, texts_of
from colab_utils.data.schema import Rejected, answer_of, prompt_of
from colab_utils.data.shapes.formats import Tally

if TYPE_CHECKING:
    from colab_utils.data.repeats.fingerprints import Fingerprints


@dataclass
class Part:
    """What a process makes of some raw rows.

    `lines` and `numbers` are of the rows that the rules keep. `filtered` are the others
    with what was found for them: the kind of the dataset is not known yet, and a row of
    another kind is rejected for its kind. `columns` are (what was found, a column).
    """

    rejected: list[Rejected]
    tally: Tally
    lines: list[bytes] = field(default_factory=list)
    numbers: list[tuple[Any, ...]] = field(default_factory=list)
    filtered: list[tuple[str, Rejected]] = field(default_factory=list)
    columns: set[tuple[str, str]] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def read(kind: str, rules: Sequence[Rule], items: list[Numbered | Rejected]) -> Part:
    """Bring raw rows into the schema, and apply the rules to each."""
    loaded = loading.convert(items, kind)
    made = Part(loaded.rejected, loaded.tally)
    good, bad = filter_rows(loaded.rows, rules)
    kept, filtered = iter([*good, None]), iter(bad)
    following = next(kept)
    for row, found in zip(loaded.rows, loaded.found, strict=True):
        made.columns.update((found, name) for name in row)
        if row is not following:
            made.filtered.append((found, next(filtered)))
            continue
        following = next(kept)
        describing.note_keys(row, made.keys)
        line = saving.to_line(saving.to_text(row)).encode()
        made.lines.append(line)
        key = exact_key(row)
        answer = len(answer_of(row))
        labels = sum((name in row) << i for i, name in enumerate(LABELS))
        made.numbers.append(
            (
                int.from_bytes(key[:8], "big"),
                int.from_bytes(key[8:], "big"),
                row["line"],
                len(line),
                len(prompt_of(row)) + answer,
                answer,
                found,
                labels,
            )
        )
    return made


def fingerprints(lines: list[bytes]) -> Fingerprints:
    """Return the fingerprints of rows, given as their lines."""
    from colab_utils.data.repeats.fingerprints import fingerprint

    return fingerprint([texts_of(parse(line)) for line in lines])


def prompts(lines: list[bytes]) -> tuple[Fingerprints, list[str]]:
    """Return the fingerprints of the prompts, and the groups."""
    from colab_utils.data.repeats.fingerprints import fingerprint

    rows = [parse(line) for line in lines]
    prints = fingerprint([splitting.split_texts(row) for row in rows])
    return prints, [row.get("group", "") for row in rows]
