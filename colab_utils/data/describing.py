"""The dataset card: statistics of the rows, a figure, the license, and the columns."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import hub
from colab_utils.data.files import readers, sources
from colab_utils.data.schema import (
    CLASSIFICATION,
    Rejected,
    Row,
    answer_of,
    kind_of,
    prompt_of,
)

if TYPE_CHECKING:
    import numpy as np

    Lengths = Sequence[int] | np.ndarray

FIGURE = "lengths.png"
UNKNOWN = "unknown"
CONVERSATIONS = ("messages", "prompt", "chosen", "rejected")
TEXT = {"dtype": "string"}
CALLS = {
    "list": [
        {"name": "id", **TEXT},
        {"name": "type", **TEXT},
        {
            "name": "function",
            "struct": [{"name": "name", **TEXT}, {"name": "arguments", **TEXT}],
        },
    ]
}
# The types of columns and of a message's keys that are not text.
TYPES: dict[str, dict[str, Any]] = {
    "line": {"dtype": "int64"},
    "weight": {"dtype": "int64"},
    "tool_calls": CALLS,
}
COLORS = ("#2563eb", "#f59e0b", "#9ca3af")
SHOWN_REASONS = 10


@dataclass
class Facts:
    """What the card says about the rows, file by file.

    `characters` and `tokens` are the lengths of the rows of each file. `columns` are
    the columns of all rows, and `keys` the keys of all messages. `reasons` counts the
    rejected rows by reason.
    """

    kind: str
    characters: dict[str, Lengths]
    tokens: Mapping[str, Lengths] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)


def facts(
    files: Mapping[str, list[Row]],
    rejected: Iterable[Rejected],
    tokens: Mapping[str, list[int]],
) -> Facts:
    """Return the facts of the rows; raises ValueError if they are of several kinds."""
    found = Facts(
        kind_of(next(iter(files.values()))[0]),
        {name: [*map(characters, rows)] for name, rows in files.items()},
        tokens,
        reasons=Counter(general(row.reason) for row in rejected),
    )
    for name, rows in files.items():
        for row in rows:
            if (kind := kind_of(row)) != found.kind:
                raise ValueError(
                    f"{name} has a {kind} row (line {row.get('line')}), but the first "
                    f"row is of the kind {found.kind}. Save one kind a dataset."
                )
            found.columns.update(row)
            note_keys(row, found.keys)
    return found


def characters(row: Row) -> int:
    """Return the length of a row's prompt and answer in characters."""
    return len(prompt_of(row)) + len(answer_of(row))


def note_keys(row: Row, keys: set[str]) -> None:
    """Add the keys of a row's messages to the set."""
    for column in CONVERSATIONS:
        if isinstance(turns := row.get(column), list):
            keys.update(*turns)


def general(reason: str) -> str:
    """Return a reason without its numbers: "repeats line 7" is "repeats line N"."""
    return re.sub(r"\d[\d,.]*(?<![,.])", "N", reason)


def source_files(source: str) -> list[Path]:
    """Return the local files of a source: none for the demo or a Hub id."""
    with contextlib.suppress(OSError, ValueError):
        return readers.files(source) if source and source != "demo" else []
    return []


def license_of(source: str) -> str:
    """Return the license of a dataset on the Hub, by its card; else "unknown".

    "unknown" is printed, with the reason. The demo's license is the course's.
    """
    if source == "demo":
        return "apache-2.0"
    why = "the source names none"
    if sources.HUB_ID.fullmatch(source) and not source_files(source):
        from huggingface_hub import HfApi

        name = source.partition(":")[0]
        try:
            card = HfApi(token=hub.token() or False).dataset_info(name).card_data
            if found := card and card.get("license"):
                return str(found[0] if isinstance(found, list) else found)
            why = f"the card of {name} names none"
        except (OSError, ValueError) as error:
            why = f"the card of {name} can't be read ({type(error).__name__})"
    print(f"license: unknown, because {why}")
    return UNKNOWN


def header(facts: Facts, license: str) -> dict[str, Any]:
    """Return the card's metadata, in which `load_dataset` finds splits and columns."""
    task = "text-generation"
    if facts.kind == CLASSIFICATION:
        task = "text-classification"
    splits = [{"split": name, "path": f"{name}.jsonl"} for name in facts.characters]
    return {
        "license": license,
        "task_categories": [task],
        "tags": [facts.kind],
        "size_categories": [_size(sum(map(len, facts.characters.values())))],
        "configs": [{"config_name": "default", "data_files": splits}],
        "dataset_info": {"features": _features(facts)},
    }


def _features(facts: Facts) -> list[dict[str, Any]]:
    """Return the columns and their types.

    `datasets` would take them from the first 10 MB. A column that begins later, such as
    `tools`, would then be an error.
    """
    talks = CONVERSATIONS if facts.keys else ()
    return [
        {"name": name, "list": _types(facts.keys)}
        if name in talks
        else {"name": name, **TYPES.get(name, TEXT)}
        for name in sorted(facts.columns)
    ]


def _types(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the types of the keys of a message.

    Each call returns a new list: YAML would write a list that is used twice as a
    reference, which `datasets` can't read.
    """
    return [{"name": name, **TYPES.get(name, TEXT)} for name in sorted(names)]


def _size(rows: int) -> str:
    """Return the Hub's category for a number of rows."""
    for power, name in ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K")):
        if rows < 10**power:
            return name
    return "100K<n<1M" if rows < 10**6 else "1M<n<10M"


def text(facts: Facts, card: str, source: str, license: str, sha256: str | None) -> str:
    """Return the card's text: the caller's, then statistics, source and license."""
    lines = ["| file | rows | length in | median | 95 % | longest |"]
    lines += ["|---|---|---|---|---|---|"]
    for unit, files in (("characters", facts.characters), ("tokens", facts.tokens)):
        lines += [_lengths(name, unit, values) for name, values in files.items()]
    parts = [card.strip(), f"Kind of rows: {facts.kind}.", "\n".join(lines)]
    parts.append(f"![Lengths of the rows]({FIGURE})")
    if facts.reasons:
        parts.append(_reasons(facts.reasons))
    parts.append(_provenance(source, license, sha256))
    return "\n\n".join(filter(None, parts))


def _lengths(name: str, unit: str, values: Lengths) -> str:
    """Return a line of the table of lengths."""
    import numpy as np

    low, high = np.percentile(values, [50, 95])
    return (
        f"| {name} | {len(values):,} | {unit} | {low:,.0f} | {high:,.0f} | "
        f"{max(values):,} |"
    )


def _reasons(reasons: Counter[str]) -> str:
    """Return the table of the most frequent reasons of rejection."""
    total = reasons.total()
    repeats = sum(n for reason, n in reasons.items() if "repeats line" in reason)
    lines = [f"Rejected rows: {total:,}, of which {repeats:,} are duplicates."]
    lines += ["", "| reason | rows |", "|---|---|"]
    order = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    for reason, count in order[:SHOWN_REASONS]:
        cell = reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {cell} | {count:,} |")
    if rest := sum(count for _, count in order[SHOWN_REASONS:]):
        lines.append(f"| other reasons | {rest:,} |")
    return "\n".join(lines)


def _provenance(source: str, license: str, sha256: str | None) -> str:
    named = f"`{Path(source).name if sha256 else source}`" if source else UNKNOWN
    known = f"Source: {named}"
    known += f" (SHA-256 `{sha256}`)." if sha256 else "."
    known += f" License: {license}."
    if license == UNKNOWN:
        known += " Ask the author of the source before you share these rows."
    return (
        f"{known} The source and the parameters in recipe.json give the same files "
        "again, byte for byte."
    )


def draw_lengths(facts: Facts, path: Path) -> None:
    """Draw how long the rows of each file are: the share of its rows by characters."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.5), dpi=80)
    axes = figure.add_axes((0.1, 0.2, 0.87, 0.75))
    axes.spines[["top", "right"]].set_visible(False)
    values = {name: np.asarray(found) for name, found in facts.characters.items()}
    longest = max(int(np.percentile(found, 99)) for found in values.values())
    bins = np.linspace(0, longest + 1, 40)
    for i, (name, found) in enumerate(values.items()):
        counts = np.histogram(np.minimum(found, longest), bins)[0]
        color = COLORS[i % len(COLORS)]
        axes.stairs(100 * counts / len(found), bins, color=color, label=name)
    axes.set(xlabel="characters per row", ylabel="% of the file's rows")
    axes.legend(frameon=False)
    # Without the version of matplotlib: the same rows give the same file.
    figure.savefig(path, metadata={"Software": None})
