"""Read raw rows from files or the Hub, each with its line number.

A row that can't be read comes back as `Rejected`, never as an exception: one bad line
must not lose the other ten thousand. Rows are read when they are asked for, so that a
file may be larger than the RAM.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from colab_utils import hub
from colab_utils.data.files import columnar, json_files, sources, streams, tables
from colab_utils.data.files.json_lists import NOT_JSON
from colab_utils.data.files.sources import SUFFIXES, Source
from colab_utils.data.files.streams import Notes, Numbered, Stream, Text
from colab_utils.data.schema import Rejected, reject

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["NOT_JSON", "SUFFIXES", "Numbered", "files", "read", "read_file", "read_hub"]

Items = Iterator[Numbered | Rejected]
# What a download holds in place of the data, by its first bytes.
WEB_PAGE = "a web page. The download has failed: open its link in a browser"
NO_DATA = {
    b"<!doctype html": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"version https://git-lfs": "a pointer of Git LFS. Run git lfs pull",
}
NAMED = 20  # files of a pattern whose lines are printed


def files(source: str) -> list[Path]:
    """Return the local files that `source` names, sorted; none for a Hub id.

    Raises FileNotFoundError and ValueError as `read` does.
    """
    return [file.path for file in sources.find(source) or ()]


def read(source: str) -> Items:
    """Yield (line, row) for each row of a dataset, and each broken row as `Rejected`.

    `source` is a file, also a compressed one, a pattern such as data/*.jsonl, a part of
    a file such as data.zip/train.jsonl, or a Hub id. The lines of several files are
    numbered on, as `cat` would join them. Raises FileNotFoundError when there is no
    such file, and ValueError when it is not clear what to read.
    """
    found = sources.find(source)
    if found is None:
        page = sources.HUB_PAGE.fullmatch(source)
        return iter(read_hub(page[1] if page else source))
    return _read_several(found) if len(found) > 1 else _read(found[0])


def read_file(path: Path) -> Items:
    """Yield (line, row) for each row of a file, and each broken row as `Rejected`.

    Raises ValueError when the whole file can't be read.
    """
    return read(str(path))


def _read_several(found: list[Source]) -> Items:
    before = 0
    for number, file in enumerate(found, start=1):
        lines = yield from _numbered_on(_read(file), before)
        if number <= NAMED:
            print(f"{file.name}: lines {before + 1:,} to {before + lines:,}")
        before += lines
    if len(found) > NAMED:
        print(f"{len(found) - NAMED:,} more files: lines up to {before:,}")


def _numbered_on(
    items: Generator[Numbered | Rejected, None, int], before: int
) -> Generator[Numbered | Rejected, None, int]:
    """Yield the items with `before` added to their lines; return the file's lines."""
    while True:
        try:
            item = next(items)
        except StopIteration as end:
            return int(end.value)
        if isinstance(item, Rejected):
            yield dataclasses.replace(item, line=before + item.line)
        else:
            yield before + item[0], item[1]


def _read(file: Source) -> Generator[Numbered | Rejected, None, int]:
    """Yield the rows of one file, print what was decided, and return its lines."""
    notes = Notes(file.name)
    texts: list[Text] = []

    def open_text() -> Text:
        newline = "" if file.suffix in (".csv", ".tsv") else "\n"
        texts.append(Text(_open(file), notes, newline))
        return texts[-1]

    last = 0
    items: Items
    if file.suffix in (".parquet", ".arrow"):
        items = columnar.read(_seekable(file), file.name)
    elif file.suffix in (".csv", ".tsv"):
        items = tables.read(open_text(), file.suffix)
    else:
        items = json_files.read(open_text, file.key)
    for item in items:
        last = item.line if isinstance(item, Rejected) else item[0]
        yield item
    if texts and texts[-1].damage:
        last = max(last, texts[-1].lines) + 1
        yield reject(last, f"the file can't be read further: {texts[-1].damage}", "")
    notes.show()
    return max([last, *(text.lines for text in texts)])


def _open(file: Source) -> Stream:
    """Open a file's data; raises ValueError if it is not data but a web page."""
    stream = streams.open_bytes(file.path, file.member)
    head = stream.peek(40)[:40].lower().lstrip()
    for start, what in NO_DATA.items():
        if head.startswith(start):
            raise ValueError(f"{file.name} is not data but {what}.")
    return stream


def _seekable(file: Source) -> IO[bytes]:
    """Open a file that is not read from its start; a compressed one goes to RAM."""
    stream = _open(file)
    if file.path.suffix.lower() == file.suffix and not file.member:
        return file.path.open("rb")
    content = io.BytesIO(stream.read())
    if stream.damage:
        raise ValueError(f"{file.name} can't be read: {stream.damage}.")
    return content


def read_hub(source: str) -> Iterator[Numbered]:
    """Yield (number, row) of a Hub dataset, named by `id:config:split`.

    Without a config it is the only one, and without a split it is `train`. Raises
    ValueError when the dataset has no such config or split.
    """
    from datasets import load_dataset

    key = hub.token()
    name, config, split = [*source.split(":"), "", ""][:3]
    try:
        with hub.hub_errors(name, key):
            dataset = load_dataset(
                name, config or None, split=split or "train", token=key or False
            )
    except ValueError as error:
        raise ValueError(
            f"{source} can't be loaded: {error}\nName a config after a colon, as in "
            f"openai/gsm8k:main, and a split other than train after another, as in "
            f"{name}:{config}:test."
        ) from error
    return enumerate(_with_names(dataset), start=1)


def _with_names(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows with the names of their labels, which are stored as numbers."""
    from datasets import ClassLabel

    labels = {n: f for n, f in dataset.features.items() if isinstance(f, ClassLabel)}
    for row in dataset:
        for column, label in labels.items():
            number = row[column]
            # -1 stands for a label that is held back, as in a public test set.
            known = number is not None and number >= 0
            row[column] = label.int2str(number) if known else None
        yield row
