"""Replace a folder safely: at any moment, the old one or the new one is whole."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from colab_utils import locks

WAIT = 10.0  # seconds that a reader waits for a process that replaces a folder


def settle(folder: Path) -> None:
    """Finish what `replace` left undone, unless another process is replacing `folder`.

    Then this waits until there is a folder: one that is put back would be in the way of
    that process. Raises RuntimeError if there is none after ten seconds.
    """
    end = time.monotonic() + WAIT
    while any(_hidden(folder, name).exists() for name in ("old", "kept")):
        try:
            with locks.locked(folder):
                restore(folder)
            return
        except RuntimeError:
            if folder.exists():
                return
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def restore(folder: Path) -> None:
    """Finish what `replace` left undone when it was killed.

    The old `folder` is put back if the new one is not in its place yet. What `replace`
    should keep goes back into the folder.
    """
    old, kept = _hidden(folder, "old"), _hidden(folder, "kept")
    if old.exists() and not folder.exists():
        old.rename(folder)
    if kept.exists() and folder.exists():
        for path in list(kept.iterdir()):
            place = folder / path.name
            path.rename(dated(place) if place.exists() else place)
        kept.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def replace(new: Path, folder: Path, keep: Iterable[str] = ()) -> None:
    """Move the finished folder `new` to `folder`, which stays complete until then.

    `keep` names what moves from the old folder to the new one. If the process is
    killed, either the old folder or the new one is left: in place, or where `restore`
    finds it.
    """
    restore(folder)
    old, kept = _hidden(folder, "old"), _hidden(folder, "kept")
    for name in keep:
        kept.mkdir(exist_ok=True)
        (folder / name).rename(kept / name)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    finally:  # also puts the old folder back if the new one can't be moved
        restore(folder)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Raise RuntimeError if `folder` is replaced while this block reads its files.

    The block may have read some files of the old folder, and some of the new one. On
    Windows a folder that is being read can't be replaced.
    """
    if sys.platform == "win32" or not folder.exists():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # keeps the number of the inode in use
    try:
        yield
        if not locks.is_there(descriptor, folder):
            raise RuntimeError(
                f"{folder} was replaced by another process while it was read: run this "
                "again."
            )
    finally:
        os.close(descriptor)


def dated(path: Path) -> Path:
    """Return an unused path next to `path`, with the date and time in its name."""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d_%H%M")
    ends = itertools.chain([now], (f"{now}-{n}" for n in itertools.count(2)))
    names = (path.with_name(f"{path.name}.{end}") for end in ends)
    return next(name for name in names if not name.exists())


def _hidden(folder: Path, end: str) -> Path:
    return folder.with_name(f".{folder.name}.{end}")
