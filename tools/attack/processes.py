"""Start a task in a forked process, count what it does, and kill it."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
LIMIT = 120.0  # seconds until a process counts as one that never ends


class Shared:
    """A whole number that a process and its forked children share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """The number."""
        found: int = struct.unpack("q", self.memory[:])[0]
        return found

    @value.setter
    def value(self, number: int) -> None:
        self.memory[:] = struct.pack("q", number)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: by a signal), and what it wrote.

    One that `hung` never ended, and was killed.
    """

    code: int
    log: str
    hung: bool = False

    @property
    def why(self) -> str:
        """The last line of the log."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Process:
    """A task that runs in a forked process; its output goes to the file `log`."""

    def __init__(self, task: Callable[[], None], log: Path) -> None:
        self.log, self.began = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(task, log)

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than the process runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            time.sleep(min(0.002, max(0.0, end - time.monotonic())))

    def ended(self) -> bool:
        """Return whether the process has ended; it stays until `wait`."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def kill(self) -> Ended:
        """Send SIGKILL, and wait."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> Ended:
        """Return how the process ended; one that never ends is killed."""
        hung = False
        while not self.ended():
            if time.monotonic() - self.began > LIMIT and not hung:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, self.log.read_text("utf-8", errors="replace"), hung)


def _run(task: Callable[[], None], log: Path) -> None:
    """Run a task in this forked process, and end it without any clean-up."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        task()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def kill_this() -> None:
    """Send SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_touches(
    task: Callable[[], None],
    folder: Path,
    count: Shared,
    at: int = 0,
    strike: Callable[[], None] = kill_this,
) -> Callable[[], None]:
    """Return a task that counts its accesses to files below `folder`.

    Just before the access of the number `at` it calls `strike`.
    """

    def counted() -> None:
        here = f"{folder}{os.sep}"

        def hook(event: str, given: tuple[object, ...]) -> None:
            if event not in TOUCHES or not isinstance(given[0], str | Path):
                return
            if os.path.abspath(given[0]).startswith(here):
                count.value += 1
                if count.value == at:
                    strike()

        sys.addaudithook(hook)
        task()

    return counted
