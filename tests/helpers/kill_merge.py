"""Kill merges over an older model again and again; after each, merge once more.

python kill_merge.py HOW SEED, in a folder that holds `base` and `adapter`. HOW is
"touches": trial n is killed at its n-th access to a file there. Or "bytes": after a
number of bytes drawn at random. Prints a line for each trial: "state:", the model in
place ("old", "new" or "none"), the number of finished files, the exit code.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from colab_utils import recipe, weights

BASE, ADAPTER = Path("base"), Path("adapter")
MODELS, OUT = Path("models"), Path("models/mine")
PART, OLD = MODELS / ".mine.part", MODELS / ".mine.old"
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def content(folder: Path) -> list[tuple[str, str]] | None:
    """Return name and hash of all files."""
    if not folder.exists():
        return None
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [(file.name, recipe.sha256(file)) for file in files]


def start(task: Callable[[], None]) -> int:
    """Run `task` in a child process; return the process id."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        task()
        sys.stdout.flush()
        os._exit(0)
    return process


def wait(process: int) -> int:
    """Return the exit code of a child process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def merge() -> None:
    weights.merge(BASE, ADAPTER, OUT)


def merge_killed_at(touch: int) -> None:
    """Merge, and kill this process at that access to the disk."""
    left, here = touch, str(Path.cwd())

    def hook(event: str, given: tuple) -> None:
        nonlocal left
        if event in TOUCHES and os.path.abspath(str(given[0])).startswith(here):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    merge()


def kill_after(size: float) -> int:
    """Merge in a child that is killed once it has written `size` bytes."""
    process = start(merge)
    while written() < size and not (OUT / "model-1.safetensors").exists():
        pass
    os.kill(process, signal.SIGKILL)
    return wait(process)


def written() -> int:
    """Return the bytes that the running merge has written."""
    try:
        return sum(file.stat().st_size for file in PART.glob("*"))
    except FileNotFoundError:  # it was just renamed
        return 0


def write_older() -> list[tuple[str, str]] | None:
    """Leave only an older model, and return its content."""
    shutil.rmtree(MODELS)
    OUT.mkdir(parents=True)
    (OUT / "config.json").write_text("older")
    (OUT / "inputs.json").write_text("{}")
    return content(OUT)


def main(how: str, seed: int) -> None:
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    merge()  # here, so that children import nothing
    total = sum(file.stat().st_size for file in weights.find_shards(BASE))
    before, new = content(BASE), content(OUT)
    draw = random.Random(seed)
    for trial in range(1, 1000):
        old = write_older()
        if how == "touches":
            code = wait(start(partial(merge_killed_at, trial)))
        else:
            code = kill_after(draw.uniform(1, 0.9 * total))
        assert content(BASE) == before
        states = {json.dumps(old): "old", json.dumps(new): "new"}
        state = states.get(json.dumps(content(OUT)), "none")
        if state == "none":
            assert not OUT.exists() and content(OLD) == old
            assert content(PART) == new
        done = len(list(PART.glob("*.safetensors")))
        done *= (PART / "inputs.json").exists()  # gone just before the moves
        assert wait(start(merge)) == 0
        assert content(OUT) == new and content(BASE) == before
        assert os.listdir(MODELS) == ["mine"]
        print("state:", state, done, code, flush=True)
        if code == 0 if how == "touches" else trial == 12:
            break


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
