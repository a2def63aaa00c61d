"""A lock on what is being written, between the processes of one machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file or folder for this block, which writes it.

    Raises RuntimeError if another block has the lock: in this process or another one.
    The lock is a hidden file next to `path`, and ends with the process, even if that is
    killed. Where files can't be locked (some network disks), a line says so. On
    Windows this does nothing.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = _acquire(path, path.with_name(f".{path.name}.lock"))
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # the disk may be gone by now
                path.with_name(f".{path.name}.lock").unlink()
            os.close(descriptor)


def _acquire(path: Path, file: Path) -> int | None:
    """Return the descriptor that holds the lock, or None if there can be none."""
    import fcntl

    descriptor = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
            os.close(descriptor)  # the last owner has just removed this file
            descriptor = None
    except BlockingIOError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise RuntimeError(
            f"Another process is writing into {path}: wait until it ends, stop it, or "
            "choose another name."
        ) from error
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        print(
            f"{path} can't be locked ({error.strerror}): let no other notebook write "
            "there until this one has finished"
        )
        return None
