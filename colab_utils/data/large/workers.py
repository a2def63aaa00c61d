"""Processes that work on parts of a dataset, in the order of the parts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
AHEAD = 2  # parts for each process that wait or are worked on: they are in memory


def available() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """Processes that apply functions to parts of a dataset.

    With one process, this process does the work. Use it in a `with` block.
    """

    def __init__(self, count: int) -> None:
        """Start `count` processes at the first use."""
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            import multiprocessing

            # A forked copy of a process with threads, such as torch's, may hang.
            self._pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), _end_with_parent
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

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


def _end_with_parent() -> None:
    """End this process when its parent is killed."""
    import multiprocessing
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
