"""The workspace: folders of datasets, adapters, models and reports."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from colab_utils import parameters, replacement, runtime, storage
from colab_utils.storage import Place

# Which notebook writes a folder of the workspace, and which parameter names it.
MAKERS = {
    "datasets": ("01_create_dataset", "DATASET_NAME"),
    "adapters": ("02_finetune_qlora", "ADAPTER_NAME"),
    "models": ("04_merge_and_publish", "MODEL_NAME"),
    "reports": ("12_evaluate", "REPORT_NAME"),
}
# Every folder that the course has written, finished or not, contains one of these.
MARKS = ("recipe.json", "checkpoints*", "inputs.json")


@dataclass(frozen=True)
class Workspace:
    """The folder that holds `datasets/`, `adapters/`, `models/` and `reports/`.

    `place` says where the folder is kept; `open` chooses it.
    """

    folder: Path
    place: Place | None = None

    @classmethod
    def open(cls, use_drive: bool = False) -> Workspace:
        """Choose the workspace, create it if it is missing, and print where it is.

        `storage.choose` decides: on Colab with `use_drive` it is on Google Drive.
        Raises RuntimeError if Drive can't be mounted, and OSError if the folder is not
        writable.
        """
        place = storage.choose(use_drive)
        _create(place.folder)
        print(f"workspace: {place.folder}{place.note}")
        return cls(place.folder, place)

    @property
    def scratch(self) -> Path | None:
        """A folder for large temporary files, if the workspace is on a small disk."""
        return self.place.scratch if self.place else None

    def new(self, kind: str, name: str) -> Path:
        """Return the folder `<workspace>/<kind>/<name>` that a notebook will write.

        `kind` is "datasets", "adapters", "models" or "reports". A line is printed if a
        finished one will be replaced. Raises ValueError for a name that is not a plain
        folder name, and FileExistsError if the folder holds something that the course
        did not write: it would be replaced.
        """
        folder, parameter = self._folder(kind, name), MAKERS[kind][1]
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(folder, parameter, MARKS)
        if (folder / "recipe.json").is_file():
            print(
                f"{kind}/{folder.name} is finished, and stays until this notebook "
                "saves its own result there. To keep both, choose another "
                f"{parameter}."
            )
        return folder

    def find(self, kind: str, name: str) -> Path:
        """Return the folder `<workspace>/<kind>/<name>` if it is finished.

        A finished folder has a recipe.json.

        Raises ValueError for a name that is not a plain folder name, and
        FileNotFoundError, which says what to run, if the folder is missing or
        unfinished.
        """
        folder = self._folder(kind, name)
        name = folder.name
        finished = self.finished(kind)
        if name not in finished:  # another process may be replacing it just now
            replacement.settle(folder)
            finished = self.finished(kind)
        if found := finished.get(name):
            if found != folder:
                print(f"{kind}/{name} is read from {found}")
            return found
        notebook, parameter = MAKERS[kind]
        state = "is unfinished (recipe.json is missing)"
        if not folder.is_dir():
            state = "does not exist"
        advice = f" ({folder.parent} has no finished one)."
        if finished:
            advice = f", or set {parameter} to one of: {', '.join(sorted(finished))}."
        elsewhere = (
            f"\n{self.place.missing}." if self.place and self.place.missing else ""
        )
        raise FileNotFoundError(
            f"{folder} {state}. Run the notebook {notebook}, which writes it{advice}"
            f"{elsewhere}"
        )

    def with_room(self, folder: Path, size: float) -> Path:
        """Return `folder` for `size` bytes, or one on a larger disk if it has no room.

        Only a workspace with a `scratch` folder has a larger disk. The change is
        printed.
        """
        free = shutil.disk_usage(self.folder).free
        if self.scratch is None or size <= free:
            return folder
        other = self.scratch / folder.relative_to(self.folder)
        other.parent.mkdir(parents=True, exist_ok=True)
        print(
            f"{folder.name} takes {size / runtime.GIB:.1f} GiB, and {self.folder} has "
            f"{free / runtime.GIB:.1f} GiB free. So it is written to {other}, which is "
            "lost with this machine: to keep it, set HUB_NAME, or free the space and "
            "run again."
        )
        return other

    def finished(self, kind: str) -> dict[str, Path]:
        """Return the finished folders of a kind by name; those of the workspace win."""
        inputs = self.place.inputs if self.place else ()
        patterns = [*inputs, glob.escape(str(self.folder))]
        recipes = [
            Path(file)
            for pattern in patterns
            for file in sorted(glob.glob(f"{pattern}/{kind}/*/recipe.json"))
        ]
        return {file.parent.name: file.parent for file in recipes}

    def _folder(self, kind: str, name: str) -> Path:
        """Return an artifact's folder; restore it if a replacement was interrupted."""
        if kind not in MAKERS:
            raise ValueError(f"kind = {kind!r}, but it must be one of: {_kinds()}.")
        name = parameters.clean(name)
        _check_name(kind, name)
        folder = self.folder / kind / name
        replacement.settle(folder)
        return folder


def _kinds() -> str:
    return ", ".join(MAKERS)


def _create(path: Path) -> None:
    """Create the workspace; raises OSError if it cannot be written."""
    problem = None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is None and not os.access(path, os.W_OK):
        problem = "it is read-only"
    if problem:
        raise OSError(
            f"The workspace {path} cannot be used: {problem}. Set the environment "
            "variable WORKSPACE to a writable folder, then run again."
        )


def _check_name(kind: str, name: str) -> None:
    plain = re.fullmatch(r"[^/\\\x00-\x1f\ud800-\udfff]{1,80}", name)
    # A file system takes 255 bytes, and the course adds up to 40, such as the date.
    long = plain and len(name.encode()) > 200
    if (
        not plain
        or long
        or ".." in name
        or name != name.strip(" .")
        or name.endswith(".part")
    ):
        raise ValueError(
            f"{MAKERS[kind][1]} = {name!r} is not a plain name. It names a folder in "
            f"workspace/{kind}, so it needs 1 to 80 characters (up to 200 bytes), "
            "without a slash or '..', and without a dot or a space at either end."
        )


def check_replaceable(
    folder: Path,
    parameter: str,
    marks: Iterable[str],
    *,
    files: Collection[str] | None = None,
    inputs: Iterable[Path] = (),
) -> None:
    """Raise FileExistsError if replacing `folder` would delete files of the user.

    A folder may be replaced if it is missing or empty, or if it has one of `marks`
    (patterns of names), which the course writes. With `files`, it may hold only these
    files. It may not contain one of `inputs`, from which the new folder is written.
    `parameter` is the notebook's constant that names the folder.
    """
    advice = f"Choose another {parameter}, or move it away."
    for path in inputs:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise FileExistsError(
                f"{folder} would be replaced, but it contains {path.name}, which is "
                f"read here. {advice}"
            )
    if not folder.exists():
        return
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    if found == []:
        return
    ours = found is not None and any(any(folder.glob(mark)) for mark in marks)
    foreign = [name for name in found or () if files is not None and name not in files]
    if not ours or foreign:
        what = f"{foreign[0]}, which" if ours else "something that"
        raise FileExistsError(
            f"{folder} would be replaced, but it holds {what} was not written by the "
            f"course. {advice}"
        )


def set_aside(folder: Path, reason: str) -> Path:
    """Rename a folder that must not be lost, and return its new path.

    `checkpoints` becomes `checkpoints.2026-11-25_2130`, next to it. The line that is
    printed first has the reason, the new name and the disk space of all such folders.
    """
    aside = replacement.dated(folder)
    print(f"{reason}. Nothing is deleted: {folder.name} is renamed to {aside.name}.")
    folder.rename(aside)
    others = [path for path in folder.parent.glob(f"{folder.name}.*") if path.is_dir()]
    files = [file for path in others for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / runtime.GIB
    print(
        f"{folder.parent} now has {len(others)} such folder{'s' * (len(others) != 1)}, "
        f"{size:.2f} GiB. Delete those that you do not need."
    )
    return aside


def discard(folder: Path, ignore_errors: bool = False) -> None:
    """Delete a folder that the course wrote; empty its files first.

    Files deleted from a mounted Google Drive go to its trash, which counts against the
    quota. Empty files take no space there. Links are deleted, not followed.
    """
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                os.truncate(file, 0)
    shutil.rmtree(folder, ignore_errors)
