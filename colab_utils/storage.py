"""Where a workspace is kept: Google Drive on Colab, the notebook's output on Kaggle."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from colab_utils import parameters, runtime

DRIVE = Path("/content/drive")
KAGGLE = Path("/kaggle")
# The parts of Colab's errors when it mounts Drive; what happened, and what to do next.
DRIVE_ERRORS = {
    "credential propagation": (
        "access was not allowed. Run the cell again and allow it in the window that "
        "opens (a browser may block the window)"
    ),
    "timeout during initial read": (
        "Drive did not answer in time. Run the cell again: the second try often works. "
        "If it does not, move files from the top folder of your Drive into folders"
    ),
    "domain policy": (
        "your organization does not allow Drive on Colab. Use a private Google account"
    ),
    "already contain files": (
        f"{DRIVE} holds files that were written there while Drive was not mounted. "
        "Move them to another folder and run the cell again"
    ),
}


@dataclass(frozen=True)
class Place:
    """The folder of a workspace, and what the reader must know about it.

    `note` is printed after the folder's path. `missing` is the advice if another
    notebook's result is not there. `inputs` are patterns of read-only folders with the
    results of other notebooks. `scratch` is a folder for large temporary files, if
    the workspace is not on an ordinary disk.
    """

    folder: Path
    note: str = ""
    missing: str = ""
    inputs: tuple[str, ...] = ()
    scratch: Path | None = None


def choose(use_drive: bool) -> Place:
    """Return the place of the workspace; mount Google Drive if it is there.

    The environment variable `WORKSPACE` decides. Without it: Drive on Colab, unless
    `use_drive` is False or the run is headless; /kaggle/working on Kaggle; elsewhere
    this project's clone, or the current folder. Raises RuntimeError if Drive can't be
    mounted.
    """
    named = os.environ.get("WORKSPACE", "").strip()
    if named:
        if use_drive and runtime.on_colab():
            _ignored("the environment variable WORKSPACE decides")
        return Place(parameters.path(named).absolute())
    if runtime.on_kaggle():
        return _kaggle()
    if runtime.on_colab():
        return _drive() if use_drive and _can_mount() else _colab_disk(use_drive)
    return Place((runtime.project_root() or Path.cwd()) / "workspace")


def _ignored(reason: str) -> None:
    print(f"USE_DRIVE = True is ignored: {reason}")


def _can_mount() -> bool:
    if runtime.headless():
        _ignored("mounting Drive asks for access, and this run is headless")
    return not runtime.headless()


def _drive() -> Place:
    """Mount Google Drive, unless it is mounted; raise RuntimeError if that fails."""
    if not (DRIVE / "MyDrive").is_dir():
        from google.colab import drive

        try:
            drive.mount(str(DRIVE))
        except Exception as error:  # Colab raises several types of its own here
            raise RuntimeError(_drive_problem(str(error))) from error
    return Place(
        DRIVE / "MyDrive" / "llama-workspace",
        missing=(
            "It must have run with USE_DRIVE = True and the same Google account. Drive "
            "may need a minute to show new files"
        ),
        scratch=Path.cwd(),
    )


def _drive_problem(text: str) -> str:
    known = (advice for part, advice in DRIVE_ERRORS.items() if part in text)
    return (
        f"Google Drive could not be mounted: {next(known, text)}. Or set USE_DRIVE = "
        "False: then the files are lost when Colab deletes this machine."
    )


def _colab_disk(use_drive: bool) -> Place:
    advice = "" if use_drive else ": set USE_DRIVE = True to keep it"
    return Place(
        (runtime.project_root() or Path.cwd()) / "workspace",
        note=f", deleted with this machine{advice}",
        missing=(
            "On Colab each notebook has its own machine: set USE_DRIVE = True in both "
            "notebooks, and run the other one again"
        ),
    )


def _kaggle() -> Place:
    return Place(
        KAGGLE / "working" / "workspace",
        note=(
            "; to keep it: Save Version with its output. The next notebook finds it "
            "after Add Input > Your Work > this notebook"
        ),
        missing=(
            "On Kaggle, save a version of that notebook with its output, then add it "
            "here: Add Input > Your Work"
        ),
        # input/<notebook>/ in older sessions, input/notebooks/<user>/<notebook>/ now
        inputs=tuple(f"{KAGGLE}/input/{deep}workspace" for deep in ("*/", "*/*/*/")),
        scratch=Path(tempfile.gettempdir()),
    )
