"""A lock on what is being written, between the processes of one machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Lock a result, as `locked` does, for the block that writes it.

    Raises FileNotFoundError at the end if the folder of `path` has disappeared, such as
    a disconnected Drive. The block has then written somewhere else.
    """
    with locked(path) as descriptor:
        yield
        check(path, descriptor)


def check(path: Path, descriptor: int | None) -> None:
    """Raise FileNotFoundError if the folder of `path` is not the one of its lock.

    `descriptor` is what `locked` has returned for `path`. Without one, the folder must
    exist.
    """
    if descriptor is None:
        there = path.parent.is_dir()
    else:
        there = is_there(descriptor, _file(path))
    if not there:
        raise _disappeared(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Lock a file or folder for this block, which writes it.

    Raises RuntimeError if another block has the lock: in this process or another one.
    The lock is a hidden file next to `path`, and ends with the process, even if that is
    killed. Its descriptor is returned. Where files can't be locked (some network
    disks), a line says so, and there is no descriptor. On Windows there is no lock. The
    folder of `path` is created if its own folder exists; else FileNotFoundError is
    raised.
    """
    if not path.parent.is_dir():
        try:
            path.parent.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise _disappeared(path.parent) from error
    if sys.platform == "win32":
        yield None
        return
    descriptor = _acquire(path, _file(path))
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # the disk may be gone by now
                if is_there(descriptor, _file(path)):
                    _file(path).unlink()
            os.close(descriptor)


def _file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def is_there(descriptor: int, file: Path) -> bool:
    """Return whether an open file or folder is still in its place."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def _disappeared(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} can't be written: its folder {path.parent} does not exist, or is "
        "another one now. Is the disk, such as Google Drive, still mounted? Mount it, "
        "or create the folder, and run again."
    )


def _acquire(path: Path, file: Path) -> int | None:
    """Return the descriptor that holds the lock, or None if there can be none."""
    import fcntl

    descriptor = None
    try:
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_there(descriptor, file):
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
    except FileNotFoundError as error:  # since `locked` has looked
        raise _disappeared(path) from error
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        print(
            f"{path} can't be locked ({error.strerror}): let no other notebook write "
            "there until this one has finished"
        )
        return None
