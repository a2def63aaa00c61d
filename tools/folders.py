"""Folders for the results of runs."""

from __future__ import annotations

import time
from pathlib import Path


def new_folder(parent: Path, prefix: str = "") -> Path:
    """Create a folder named by the time; two runs in one second get two folders.

    Raises:
        OSError: the folder cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent.absolute() / time.strftime(f"{prefix}%Y%m%d-%H%M%S")
        try:
            folder.mkdir()
        except FileExistsError:
            time.sleep(0.1)
        else:
            return folder
