"""Kill a save at its n-th disk operation, for every n.

For each n this saves "old", saves "new" over it in a child process that exits at its
n-th disk operation, and prints which one is left. A later save must always succeed.

    python kill_during_save.py dataset    # or: adapter, next to files of the reader
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from colab_utils import data, recipe, replacement, training
from colab_utils.hub.cards import address

DISK = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
FOLDER = Path("saved/mine")
READERS = ("notes.txt", "checkpoints/checkpoint-7/optimizer.pt", "checkpoints.old/x")


def rows(name: str) -> list[data.Row]:
    """Return rows that say which dataset they belong to."""
    return [{"messages": [{"role": "user", "content": name}]}]


class Dataset:
    """Saves a dataset, and reads which one is complete in a folder."""

    def save(self, name: str) -> None:
        """Save the dataset `name`."""
        data.save(FOLDER, {"train": rows(name)}, [], "", source=name)

    def read(self, folder: Path) -> str:
        """Return the name of the complete dataset in a folder."""
        name = recipe.read(folder)["source"]
        assert data.read(folder, "train") == rows(name)
        assert (folder / "README.md").exists()
        return name

    def check(self) -> None:
        """A dataset's folder holds no files of the reader."""


class Adapter:
    """Saves an adapter as 02_finetune_qlora does; the weights are its name."""

    def save(self, name: str) -> None:
        """Save the adapter `name`, whose files differ from those of another name."""

        def save_model(folder: str) -> None:
            for file in ("adapter_model.safetensors", f"adapter_model-{name}.bin"):
                (Path(folder) / file).write_text(name)

        def save_tokenizer(folder: Path) -> None:
            (folder / "tokenizer.json").write_text(name)

        def describe(folder: Path) -> None:
            (folder / "README.md").write_text(folder.name)
            recipe.write(folder, name=name)

        trainer = SimpleNamespace(
            save_model=save_model, state=SimpleNamespace(log_history=[])
        )
        tokenizer = SimpleNamespace(save_pretrained=save_tokenizer)
        training.save(trainer, tokenizer, FOLDER, describe)
        for path in READERS:
            (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / path).write_text("mine")

    def read(self, folder: Path) -> str:
        """Return the name of the complete adapter in a folder."""
        name = recipe.read(folder)["name"]
        for file in ("adapter_model.safetensors", "tokenizer.json"):
            assert (folder / file).read_text() == name
        assert (folder / "README.md").read_text() == "mine"
        assert [file.name for file in folder.glob("adapter_model-*")] == [
            f"adapter_model-{name}.bin"
        ]
        return name

    def check(self) -> None:
        """Assert that no file of the reader is lost after `replacement.restore`."""
        replacement.restore(FOLDER)
        for path in READERS:
            assert (FOLDER / path).read_text() == "mine", path


def save_and_exit_at(kind: Dataset | Adapter, n: int) -> None:
    """Save "new"; end the process without clean-up at its n-th disk operation."""
    left = n

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in DISK:
            left -= 1
            if not left:
                os._exit(9)

    sys.addaudithook(count)
    kind.save("new")
    os._exit(0)


def main(kind: Dataset | Adapter) -> None:
    """Run until n exceeds the number of disk operations."""
    recipe.versions(), address()  # read their files now, not in the child
    for n in itertools.count(1):
        shutil.rmtree(FOLDER.parent, ignore_errors=True)
        kind.save("old")
        sys.stdout.flush()
        child = os.fork()
        if not child:
            save_and_exit_at(kind, n)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        state = kind.read(FOLDER) if FOLDER.exists() else "none"
        if state == "none":
            assert kind.read(FOLDER.with_name(".mine.old")) == "old"
        kind.check()
        kind.save("next")
        assert kind.read(FOLDER) == "next" and os.listdir(FOLDER.parent) == ["mine"]
        print("state:", state)
        if code == 0:
            break


main({"dataset": Dataset, "adapter": Adapter}[sys.argv[1]]())
