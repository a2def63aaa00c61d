"""Read raw rows from a file or the Hub, each with its line number.

A row that can't be read comes back as `Rejected`, never as an exception: one bad line
must not lose the other ten thousand.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import hub
from colab_utils.data.schema import Rejected, escape, reject

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")

NOT_JSON = "not JSON"  # the start of a reason, for which `load` gives advice

Numbered = tuple[int, object]  # a line number and the raw row


def local_file(source: str) -> Path | None:
    """Return the file that `source` names, or None when it is a Hub id.

    Raises FileNotFoundError for a path that does not exist and ValueError for a folder
    or an unknown file type.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{source!r} is a folder; name a file in it ({_known()}).")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{source}: unknown file type; use one of {_known()}.")
        return path
    if HUB_ID.fullmatch(source) and not _looks_local(path):
        return None
    near = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES)[:5]
    hint = f" {path.parent} has: {', '.join(near)}." if near else ""
    raise FileNotFoundError(
        f"There is no file {source} (looked in {Path.cwd()}).{hint} Give a path to a "
        f"{_known()} file, or a Hub id such as databricks/databricks-dolly-15k."
    )


def _looks_local(path: Path) -> bool:
    """Return whether a name that could be a Hub id, such as data/my.txt, is a file."""
    return path.suffix.lower() in SUFFIXES or bool(path.suffix and path.parent.is_dir())


def _known() -> str:
    return ", ".join(SUFFIXES)


def read_file(path: Path) -> Iterator[Numbered | Rejected]:
    """Yield (line, row) for each row of a JSONL, JSON, CSV, TSV or Parquet file.

    Raises ValueError when the whole file can't be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path.name} is UTF-16 text; save it as UTF-8.")
    # Bytes that are not UTF-8 become lone surrogates. The schema rejects the row that
    # contains them.
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    if suffix in (".csv", ".tsv"):
        return _csv(text, path)
    if suffix == ".json" and text.lstrip()[:1] == "[":
        return _json_array(text, path)
    if suffix == ".json" and (whole := _json_object(text)) is not None:
        return iter([(1, whole)])
    return _json_lines(text)


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the object if the file is a single one; None for JSON Lines."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return whole if isinstance(whole, dict) else None


def _json_lines(text: str) -> Iterator[Numbered | Rejected]:
    # split("\n"), not splitlines(): a JSON string may contain U+2028.
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            yield line, json.loads(row)
        except RecursionError:
            yield reject(line, f"{NOT_JSON}: nested too deeply", row)
        except ValueError as error:
            yield reject(line, f"{NOT_JSON}: {error}", row)


def _json_array(text: str, path: Path) -> Iterator[Numbered]:
    """Decode the array element by element, to know the line of each."""
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    line, counted = 1, 0
    while True:
        at = _skip_space(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            break
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path.name} is not valid JSON: the row that begins on line {line} "
                f"can't be read ({error}). Is the file complete?"
            ) from error
        yield line, row
        at = _skip_space(text, at)
        if text[at : at + 1] not in (",", "]"):
            raise ValueError(
                f"{path.name} is not valid JSON: no comma or ] after the row that "
                f"begins on line {line}. Is the file complete?"
            )
        at += text[at] == ","
    if text[at + 1 :].strip():
        raise ValueError(
            f"{path.name} is not valid JSON: there is text after the list that ends on "
            f"line {line}. If each line is one row, name the file .jsonl."
        )


def _skip_space(text: str, at: int) -> int:
    space = re.compile(r"\s*").match(text, at)
    return space.end() if space else at


def _csv(text: str, path: Path) -> Iterator[Numbered | Rejected]:
    csv.field_size_limit(2**31 - 1)
    lines = list(io.StringIO(text, newline=""))
    header = next(filter(str.strip, lines), "")
    tab = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tab else max(",;\t", key=header.count)
    names: list[str] = []
    at = 0
    while at < len(lines):
        rest = map(lines.__getitem__, range(at, len(lines)))  # lines[at:], not copied
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        begin = at
        try:
            for fields in reader:
                # A quoted field may span lines; the row's number is its first line's.
                line, at = at + 1, begin + reader.line_num
                if len(fields) < 2 and not "".join(fields).strip():
                    continue
                if not names:
                    names = _header(fields, path)
                elif len(fields) == len(names):
                    yield line, dict(zip(names, fields, strict=True))
                else:
                    reason = f"{len(fields)} fields, the header has {len(names)}"
                    yield reject(line, reason, delimiter.join(fields))
        except csv.Error as error:
            if not names:
                raise ValueError(
                    f"The header of {path.name} can't be read: {error} (line {at + 1})."
                ) from error
            # An unclosed quote spans the rest of the file. Reject only the line where
            # it opens, and continue with the next line.
            yield reject(at + 1, f"not CSV: {error}", lines[at])
            at += 1


def _header(fields: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in fields]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(
            f"{path.name} has two columns of the same name: {escape(twice[0])[:40]}."
        )
    return names


def _parquet(path: Path) -> Iterator[Numbered | Rejected]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} can't be read as Parquet: {error}") from error
    for start in range(0, table.num_rows, 1000):
        chunk = table.slice(start, 1000)
        try:
            yield from enumerate(chunk.to_pylist(), start=start + 1)
        except (ValueError, OverflowError):
            # Arrow doesn't check that text is UTF-8: find the rows that are not.
            yield from _one_by_one(chunk, start + 1)


def _one_by_one(chunk: pyarrow.Table, first: int) -> Iterator[Numbered | Rejected]:
    for number in range(chunk.num_rows):
        try:
            yield first + number, chunk.slice(number, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield reject(first + number, f"can't be read: {error}", "")


def read_hub(source: str) -> Iterator[Numbered]:
    """Yield (number, row) of a Hub dataset's `train` split; `id:config` names a config.

    Raises ValueError when the dataset has no such config or split.
    """
    from datasets import load_dataset

    key = hub.token()
    name, _, config = source.partition(":")
    try:
        with hub.hub_errors(name, key):
            dataset = load_dataset(
                name, config or None, split="train", token=key or False
            )
    except ValueError as error:
        raise ValueError(
            f"{source} can't be loaded: {error}\nName a config after a colon, as in "
            "openai/gsm8k:main. The split that is read is `train`."
        ) from error
    return enumerate(dataset, start=1)
