"""Processes that work on parts of a dataset, in the order of the parts."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from colab_utils.data.files import readers

if TYPE_CHECKING:
    from numpy.typing import NDArray

Part = TypeVar("Part")
Result = TypeVar("Result")
SMALL = 20 * 2**20  # bytes of a source that one process reads faster than several
AHEAD = 2  # parts for each process that wait or are worked on: they are in memory


def available() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes(source: str) -> int:
    """Return how many processes read a source: one if it is small."""
    files = [] if source == "demo" else readers.files(source)
    small = sum(path.stat().st_size for path in files) < SMALL
    return 1 if source == "demo" or (files and small) else available()


class Workers:
    """Processes that apply functions to parts of a dataset.

    With one process, this process does the work. Use it in a `with` block.
    """

    def __init__(self, count: int) -> None:
        """Set the number of processes."""
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._folder = ""

    def __enter__(self) -> Workers:
        if self.count > 1:
            import multiprocessing

            self._folder = tempfile.mkdtemp()
            # A forked copy of a process with threads, such as torch's, may hang.
            context = multiprocessing.get_context("spawn")
            end = functools.partial(_end_with_parent, self._folder)
            self._pool = ProcessPoolExecutor(self.count, context, end)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            shutil.rmtree(self._folder)

    def share(self, array: NDArray[Any]) -> Callable[[], NDArray[Any]]:
        """Return a function that returns the array, in any of the processes.

        The processes share one copy, in a file.
        """
        if self._pool is None:
            return lambda: array
        import numpy as np

        file, path = tempfile.mkstemp(".npy", dir=self._folder)
        with open(file, "wb") as stream:
            np.save(stream, array)
        return functools.partial(np.load, path, mmap_mode="r")

    def map(
        self, function: Callable[[Part], Result], parts: Iterable[Part]
    ) -> Iterator[Result]:
        """Yield the results in the order of the parts; few parts are in memory.

        `function` may be defined in a notebook. Raises RuntimeError if a process ends
        before it has a result.
        """
        if self._pool is None:
            yield from map(function, parts)
            return
        import dill

        payload = dill.dumps(function, recurse=True)
        waiting: deque[Future[Any]] = deque()
        try:
            for part in parts:
                waiting.append(self._pool.submit(_call, payload, part))
                if len(waiting) > AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"One of {self.count} worker processes ended early. If it ran out of "
                "memory, use workers=1. A script must start its work below the line "
                'if __name__ == "__main__":, because each worker imports the script.'
            ) from error


def _call(payload: bytes, part: Any) -> Any:
    import dill

    return dill.loads(payload)(part)


def _end_with_parent(folder: str) -> None:
    """End this process when its parent is killed, and delete the shared folder."""
    import multiprocessing
    from multiprocessing.connection import wait

    gc.freeze()  # no search for garbage among the modules
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
