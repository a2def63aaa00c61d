"""Rows on disk, with a few numbers of each row in memory."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from colab_utils.data import saving
from colab_utils.data.schema import Rejected, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colab_utils.data.repeats.fingerprints import Fingerprints

    Indices = NDArray[np.int64]

Item = TypeVar("Item")
# The numbers of a row: two halves of its `exact_key`, its line in the source, the bytes
# of its line on disk, its characters and those of its answer, what `loading.convert`
# found (an index of `Spool.found`), and which labels it has (a bit for each).
COLUMNS = {
    "key": "u8",
    "key2": "u8",
    "line": "i8",
    "size": "u4",
    "characters": "u4",
    "answer": "u4",
    "found": "u1",
    "labels": "u1",
}
LABELS = ("group", "category")
BLOCK = 1000  # neighboring rows that are read at once


def parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


class Lines:
    """JSON lines in a file that vanishes when the process ends, even if it is killed.

    The file is in the system's folder of temporary files (TMPDIR).
    """

    def __init__(self) -> None:
        """Create the file."""
        self.file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115

    def write(self, lines: Iterable[bytes]) -> None:
        """Append lines; raises OSError, which names the folder, when the disk is full.

        It leaves out the error number: a full disk of the dataset is another error.
        """
        try:
            self.file.writelines(lines)
        except OSError as error:
            raise OSError(
                f"Rows can't be written to {tempfile.gettempdir()}: {error.strerror}. "
                "A dataset takes twice the size of its source there. Free some space, "
                "or name a folder on another disk in the environment variable TMPDIR."
            ) from error

    def __iter__(self) -> Iterator[bytes]:
        self.file.seek(0)
        return iter(self.file)


class RejectedLines:
    """Rejected rows on disk, with what was found for each ("" if nothing was)."""

    def __init__(self) -> None:
        """Start with an empty file."""
        self._lines = Lines()
        self.count = 0

    def add(self, rows: Iterable[tuple[str, Rejected]]) -> None:
        """Append rejected rows."""
        lines = [
            saving.to_line({"found": found, **row.as_dict()}).encode()
            for found, row in rows
        ]
        self._lines.write(lines)
        self.count += len(lines)

    def __iter__(self) -> Iterator[tuple[str, Rejected]]:
        for line in self._lines:
            row = json.loads(line)
            yield row.pop("found"), Rejected(**row)


class Prints:
    """Fingerprints of rows, on disk."""

    def __init__(self) -> None:
        """Start without rows."""
        self._lines = Lines()
        self._parts: list[list[tuple[Any, tuple[int, ...]]]] = []

    def add(self, prints: Fingerprints) -> None:
        """Append the fingerprints of some rows."""
        columns = prints.columns()
        self._lines.write(column.tobytes() for column in columns)
        self._parts.append([(column.dtype, column.shape) for column in columns])

    def only(self, keep: NDArray[np.bool_]) -> Iterator[Fingerprints]:
        """Yield the fingerprints of the rows for which `keep` is true, in parts."""
        import numpy as np

        from colab_utils.data.repeats.fingerprints import Fingerprints

        file, start = self._lines.file, 0
        file.seek(0)
        for columns in self._parts:
            found = (
                np.frombuffer(file.read(dtype.itemsize * math.prod(shape)), dtype)
                for dtype, shape in columns
            )
            shapes = (shape for _, shape in columns)
            prints = Fingerprints(*map(np.reshape, found, shapes))
            end = start + len(prints.exact)
            yield prints.only(keep[start:end])
            start = end


class Spool:
    """The rows of a dataset: their lines on disk, and `COLUMNS` of each in memory."""

    def __init__(self) -> None:
        """Start without rows."""
        self.found: list[str] = []
        self.groups: list[str] = []
        self._lines = Lines()
        self._parts: list[NDArray[Any]] = []
        self._shared: list[NDArray[np.uint64]] = []

    def add(
        self,
        lines: list[bytes],
        numbers: NDArray[Any],
        found: list[str],
        groups: list[str],
        shared: NDArray[np.uint64],
    ) -> None:
        """Append rows: their lines, `COLUMNS`, what was found, groups, shared texts."""
        shared[:, 0] += len(self.groups)
        self._shared.append(shared)
        self._lines.write(lines)
        self.groups += map(sys.intern, groups)
        names = dict.fromkeys(found)
        self.found += [name for name in names if name not in self.found]
        numbers["found"] = [self.found.index(name) for name in found]
        self._parts.append(numbers)

    def close(self) -> None:
        """Make the numbers one array, `rows`; nothing can be added afterwards."""
        import numpy as np

        empty = np.empty(0, np.dtype([*COLUMNS.items()]))
        self.rows = np.concatenate([empty, *self._parts])
        self._texts = np.concatenate([np.empty((0, 3), np.uint64), *self._shared])
        self._parts, self._shared = [], []
        self._ends = np.cumsum(self.rows["size"], dtype=np.int64)

    def shared_by(self, keep: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return the shared texts of the rows to keep, by their places among these."""
        import numpy as np

        shared = self._texts[keep[self._texts[:, 0]]]
        shared[:, 0] = (np.cumsum(keep) - 1)[shared[:, 0]]
        return shared

    def lines(self, indices: Indices) -> Iterator[bytes]:
        """Yield the lines of these rows; it is fastest in ascending order."""
        file = self._lines.file
        sizes = self.rows["size"][indices].tolist()
        ends = self._ends[indices].tolist()
        for size, end in zip(sizes, ends, strict=True):
            file.seek(end - size)
            yield file.read(size)

    def blocks(self, indices: Indices) -> Iterator[bytes]:
        """Yield the lines of these rows, in ascending order: neighbors in one block."""
        import numpy as np

        if not len(indices):
            return
        new = (np.diff(indices) != 1) | (indices[1:] % BLOCK == 0)
        first = np.append(0, np.flatnonzero(new) + 1)
        last = np.append(first[1:], len(indices)) - 1
        starts = self._ends[indices[first]] - self.rows["size"][indices[first]]
        file, ends = self._lines.file, self._ends[indices[last]]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            file.seek(start)
            yield file.read(end - start)

    def read(self, indices: Indices) -> Iterator[Row]:
        """Yield these rows."""
        return map(parse, self.lines(indices))


def parse(line: bytes) -> Row:
    """Return the row of a line."""
    return saving.from_text(cast(Row, json.loads(line)))


def repeats(rows: NDArray[Any]) -> Indices:
    """Return for each row the index of the first row with the same key."""
    import numpy as np

    order = np.lexsort((rows["key2"], rows["key"]))  # stable: equal rows stay in order
    one, two = rows["key"][order], rows["key2"][order]
    new = np.ones(len(rows), bool)
    new[1:] = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    first = np.empty(len(rows), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first
