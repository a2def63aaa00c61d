"""Kill a save at its n-th disk operation, for every n.

For each n this saves "old", saves "new" over it in a child process that exits at its
n-th disk operation, and prints which dataset is left. A later save must always succeed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path

from colab_utils import data, recipe
from colab_utils.hub.cards import address

DISK = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
FOLDER = Path("datasets/mine")


def rows(name: str) -> list[data.Row]:
    """Return rows that say which dataset they belong to."""
    return [{"messages": [{"role": "user", "content": name}]}]


def save(name: str) -> None:
    """Save the dataset `name`."""
    data.save(FOLDER, {"train": rows(name)}, [], "", source=name)


def saved(folder: Path) -> str:
    """Return the name of the complete dataset in a folder, or "none"."""
    if not folder.exists():
        return "none"
    name = recipe.read(folder)["source"]
    assert data.read(folder, "train") == rows(name)
    assert (folder / "README.md").exists()
    return name


def save_and_exit_at(n: int) -> None:
    """Save "new"; end the process without clean-up at its n-th disk operation."""
    left = n

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in DISK:
            left -= 1
            if not left:
                os._exit(9)

    sys.addaudithook(count)
    save("new")
    os._exit(0)


def main() -> None:
    """Run until n exceeds the number of disk operations."""
    recipe.versions(), address()  # read their files now, not in the child
    for n in itertools.count(1):
        shutil.rmtree("datasets", ignore_errors=True)
        save("old")
        sys.stdout.flush()
        child = os.fork()
        if not child:
            save_and_exit_at(n)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        state = saved(FOLDER)
        if state == "none":
            assert saved(Path("datasets/.mine.old")) == "old"
            assert saved(Path("datasets/.mine.part")) == "new"
        save("next")
        assert saved(FOLDER) == "next" and os.listdir("datasets") == ["mine"]
        print("state:", state)
        if code == 0:
            break


main()
