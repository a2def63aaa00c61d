"""Let one system call of a process fail, by strace, or by Python where it is missing.

strace sees every call, also those of safetensors and torch. It counts the calls of each
thread for itself. Python sees the calls of the os module alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.attack.processes import Ended, Process, Shared

# The system calls of a class, and the errors that they fail with, in turn.
CLASSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "write": (("write", "pwrite64", "writev"), ("ENOSPC", "EIO")),
    "fsync": (("fsync", "fdatasync"), ("EIO", "ENOSPC")),
    "rename": (("rename", "renameat", "renameat2"), ("EIO", "ESTALE", "ENOSPC")),
    "open": (("open", "openat"), ("EIO", "ESTALE", "EMFILE")),
    "mkdir": (("mkdir", "mkdirat"), ("ENOSPC", "EIO")),
    "unlink": (("unlink", "unlinkat", "rmdir"), ("EIO", "ESTALE")),
    "truncate": (("truncate", "ftruncate"), ("EIO", "ENOSPC")),
    "read": (("read", "pread64"), ("EIO", "ESTALE")),
    "copy": (("sendfile", "copy_file_range"), ("EIO", "ENOSPC")),
    "list": (("getdents64",), ("EIO", "ESTALE")),
    "stat": (("stat", "fstat", "newfstatat", "statx"), ("EIO", "ESTALE")),
    "lock": (("flock",), ("ENOLCK", "EINTR")),
    "map": (("mmap",), ("ENOMEM",)),
}
# The functions of Python's os module that stand for a class without strace.
PYTHON = {
    "fsync": ("fsync",),
    "rename": ("rename", "replace"),
    "open": ("open",),
    "mkdir": ("mkdir",),
    "unlink": ("unlink", "rmdir"),
    "truncate": ("truncate",),
    "list": ("scandir", "listdir"),
}
SLOW = ("write", "rename", "open", "mkdir", "unlink", "read", "stat")
DELAY = "2ms"
ANY_TRACER = (0x59616D61, -1)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY


def has_strace() -> bool:
    """Return whether strace is installed and may trace."""
    if not shutil.which("strace"):
        return False
    tried = subprocess.run(["strace", "-qq", "-e", "none", "true"], capture_output=True)
    return tried.returncode == 0


def _calls(name: str) -> str:
    """Return the class for strace; `?` allows calls that this machine does not have."""
    return ",".join(f"?{call}" for call in CLASSES[name][0])


class Traced(Process):
    """A task under strace, whose lines go to `<log>.strace`."""

    def __init__(self, task: Callable[[], None], log: Path, *options: str) -> None:
        self.trace, go = log.with_suffix(".strace"), Shared()
        self.trace.unlink(missing_ok=True)

        def waiting() -> None:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(*map(ctypes.c_long, ANY_TRACER))
            while not go.value:
                time.sleep(0.001)
            task()

        super().__init__(waiting, log)
        time.sleep(0.01)  # until the child allows to be traced
        command = ["strace", "-f", "-qq", "-o", str(self.trace), "-p", str(self.pid)]
        self.tracer = subprocess.Popen([*command, *options], stderr=subprocess.PIPE)
        while not self._attached():
            if self.tracer.poll() is not None:
                self.kill()
                _, error = self.tracer.communicate()
                raise RuntimeError(f"strace can't attach: {error.decode()[-200:]}")
            time.sleep(0.001)
        time.sleep(0.02)  # the first stop after the attachment
        self.began = time.monotonic()
        go.value = 1

    def wait(self) -> Ended:
        """Return how the process ended, once strace has written all lines."""
        ended = super().wait()
        self.tracer.communicate()
        return ended

    def lines(self) -> str:
        """Return what strace wrote."""
        return self.trace.read_text("utf-8", errors="replace")

    def _attached(self) -> bool:
        status = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        return re.search(r"^TracerPid:\s*[1-9]", status, re.MULTILINE) is not None


def calls_in(folder: Path, task: Callable[[], None], log: Path) -> dict[str, list[int]]:
    """Return which calls of each class touch files below `folder`.

    [2, 5] are the second and the fifth call that the main thread makes of a class.
    """
    every = ",".join(_calls(name) for name in CLASSES)
    process = Traced(task, log, "-y", "-e", f"trace={every}")
    process.wait()
    found = re.findall(rf"^{process.pid} +((\w+)\(.*)", process.lines(), re.MULTILINE)
    places = {}
    for name, (calls, _) in CLASSES.items():
        lines = [line for line, call in found if call in calls]
        places[name] = [n for n, line in enumerate(lines, 1) if f"{folder}/" in line]
    return places


def failing(
    folder: Path, task: Callable[[], None], log: Path, name: str, nth: int, error: str
) -> tuple[Ended, bool]:
    """Run a task whose `nth` call of a class fails.

    The second value says whether one failed, and touched a file below `folder`.
    """
    calls = _calls(name)
    rule = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={nth}"]
    process = Traced(task, log, "-y", *rule)
    ended = process.wait()
    failed = [line for line in process.lines().splitlines() if "(INJECTED)" in line]
    return ended, any(f"{folder}/" in line for line in failed)


def slow(task: Callable[[], None], log: Path) -> Traced:
    """Start a task whose calls each wait before they reach the disk."""
    calls = ",".join(_calls(name) for name in SLOW)
    rule = ["-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter={DELAY}"]
    return Traced(task, log, *rule)


def failing_in_python(
    task: Callable[[], None], name: str, nth: int, error: str, count: Shared
) -> Callable[[], None]:
    """Return a task whose `nth` call of the os module's functions of a class fails.

    `count` is the number of calls; with `nth` = 0 none fails.
    """

    def patched() -> None:
        for function in PYTHON[name]:
            setattr(os, function, _once(getattr(os, function), nth, error, count))
        task()

    return patched


def _once(real: Callable[..., Any], nth: int, error: str, count: Shared) -> Any:
    def call(*args: Any, **given: Any) -> Any:
        count.value += 1
        if count.value == nth:
            number = getattr(errno, error)
            raise OSError(number, os.strerror(number), str(args[0]))
        return real(*args, **given)

    return call
