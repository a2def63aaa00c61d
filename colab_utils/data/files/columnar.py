"""Read Parquet and Arrow files row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from colab_utils.data.files.streams import Numbered
from colab_utils.data.schema import Rejected, reject

if TYPE_CHECKING:
    import pyarrow

BATCH = 1000  # rows that are read at a time
ARROW_FILE = b"ARROW1"


def read(file: IO[bytes], name: str) -> Iterator[Numbered | Rejected]:
    """Yield (number, row) for each row, and a rejected row for each broken one.

    Raises ValueError when the file can't be read.
    """
    import pyarrow as pa

    first = 1
    try:
        for batch in _batches(file):
            try:
                yield from enumerate(batch.to_pylist(), start=first)
            except (ValueError, OverflowError):
                # Arrow doesn't check that text is UTF-8: find the rows that are not.
                yield from _one_by_one(batch, first)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if first > 1:  # the rows before the damage are kept
            yield reject(first, f"the file can't be read from here on: {error}", "")
            return
        raise ValueError(
            f"{name} can't be read as Parquet or Arrow: {error}"
        ) from error


def _batches(file: IO[bytes]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = file.read(len(ARROW_FILE))
    file.seek(0)
    if head.startswith(b"PAR1"):
        yield from pq.ParquetFile(file).iter_batches(BATCH)
        return
    if head == ARROW_FILE:
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def _one_by_one(
    batch: pyarrow.RecordBatch, first: int
) -> Iterator[Numbered | Rejected]:
    for number in range(batch.num_rows):
        try:
            yield first + number, batch.slice(number, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield reject(first + number, f"can't be read: {error}", "")
