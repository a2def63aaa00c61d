"""Convert weights from safetensors to the types of GGUF, some rows at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from typing import TYPE_CHECKING

from colab_utils.weights.gguf_layout import Tensor
from colab_utils.weights.shards import DTYPES, read_blocks

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2 << 20  # bytes that are read and converted at a time
WORKERS = 2


def converted(tensor: Tensor) -> Iterator[np.ndarray]:
    """Yield a weight as the GGUF file stores it, some rows at a time.

    Raises ValueError for numbers that the type in the GGUF file can't represent.
    """
    pending: deque[Future[np.ndarray]] = deque()
    with tensor.path.open("rb") as file, ThreadPoolExecutor(WORKERS) as pool:
        for data in _blocks(tensor, file):
            pending.append(pool.submit(convert, tensor, data))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def equal_bytes(one: Tensor, other: Tensor) -> bool:
    """Return whether two weights of the same shape are stored as the same bytes."""
    if one.dtype != other.dtype:
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        blocks = zip(_blocks(one, a), _blocks(other, b), strict=True)
        return all(x == y for x, y in blocks)


def _blocks(tensor: Tensor, file: BufferedReader) -> Iterator[bytearray]:
    """Yield a weight's bytes as they are stored; each block holds whole heads."""
    item = 4 if tensor.dtype == "F32" else 2
    unit = tensor.head_rows * math.prod(tensor.shape[1:]) * item
    block = unit * max(1, BLOCK // unit)
    file.seek(tensor.begin)
    return read_blocks(file, math.prod(tensor.shape) * item, block, tensor.path)


def convert(tensor: Tensor, data: bytearray) -> np.ndarray:
    """Return some rows of a weight in the type of the GGUF file."""
    import gguf
    import numpy as np

    rows: np.ndarray
    if tensor.dtype == "BF16":  # the upper half of a float32
        rows = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        rows = np.frombuffer(data, DTYPES[tensor.dtype])
    rows = rows.reshape(-1, *tensor.shape[1:])
    if tensor.head_rows > 1:
        # transformers rotates entry i with i + half, llama.cpp entry 2 i with 2 i + 1.
        halves = rows.reshape(-1, 2, tensor.head_rows // 2, *tensor.shape[1:])
        rows = halves.swapaxes(1, 2).reshape(rows.shape)
    if tensor.kind != "F16":
        rows = rows.astype(np.float32)  # the input of gguf's own quantization
    with np.errstate(over="ignore", invalid="ignore"):
        out = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[tensor.kind])
    if not _is_finite(out, tensor.kind):
        raise ValueError(
            f"{tensor.name} holds a number that does not fit {tensor.kind} (NaN, "
            "infinite or too large): "
            + ("try q8_0." if tensor.kind == "F16" else "train again.")
        )
    return out


def _is_finite(rows: np.ndarray, kind: str) -> bool:
    import numpy as np

    if kind == "Q8_0":  # look at the scale of each block, its first two bytes
        rows = rows.reshape(-1, 34)[:, :2].copy()
    dtype = np.float32 if kind == "F32" else np.float16
    return bool(np.isfinite(rows.view(dtype)).all())
