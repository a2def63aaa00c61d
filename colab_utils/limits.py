"""A time limit for work whose length a foreign file decides."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def seconds(limit: float, what: str) -> Iterator[None]:
    """Raise TimeoutError if the block takes more than `limit` seconds.

    `what` is the message's subject: a pattern in an adapter's config, or a loop in a
    chat template, may be written so that it never ends. The alarm signal ends Python
    code and regular expressions. Only a main thread gets it, and Windows has none: the
    block has no limit there, nor a second one within another limit.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")) or signal.getitimer(0)[0]:
        yield
        return

    error = TimeoutError(
        f"{what} took more than {limit:g} s, and may never end. Use another file, or "
        "remove that part from it."
    )

    fired = False

    def end(_: int, __: FrameType | None) -> None:
        nonlocal fired
        fired = True
        raise error

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    except Exception as other:
        if fired and other is not error:  # Jinja fails when it is interrupted
            raise error from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
