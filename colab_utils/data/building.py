"""Build a dataset that is larger than the memory, with the steps of 01_create_dataset.

The rows lie on disk meanwhile. Each step reads the rows that the steps before have kept,
a part at a time, and decides with a few numbers of each row.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime
from colab_utils.data import describing, kinds, loading, readers, saving, schema
from colab_utils.data import spool as spooling
from colab_utils.data.dedup import exact_key, texts_of
from colab_utils.data.formats import Tally
from colab_utils.data.repeats import Repeats
from colab_utils.data.schema import Rejected, Row, answer_of, reject_row
from colab_utils.data.spool import RejectedLines, Spool
from colab_utils.data.workers import Workers, available

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

Rule = Callable[[Row], str | None]
PART = 500  # rows that a process works on at a time
SMALL = 20 * 2**20  # bytes of a source that one process reads faster than several
# Why a row is not in a file. The first is no reason: the row is kept.
KEPT, OTHER_KIND, EXACT, NEAR, TEST = range(5)
