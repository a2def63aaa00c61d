"""Google Drive on Colab: a mount that is a link to a folder, or one of the errors.

As in colabtools: the page asks for access and answers with an error (MessageError) if
the user closes the window or says no. All later problems are ValueError. The mountpoint
must be empty, without a space, not a link, and in a folder that exists.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from google.colab import _message

FAILED = {
    "failed": "mount failed",
    "slow": "mount failed: timeout during initial read of root folder; for more info: "
    "https://research.google.com/colaboratory/faq.html#drive-timeout",
    "forbidden": "The domain policy has disabled Drive File Stream: "
    "https://support.google.com/a/answer/7496409",
}


def mount(
    mountpoint: str,
    force_remount: bool = False,
    timeout_ms: int = 120_000,
    readonly: bool = False,
) -> None:
    """Mount Drive, so that `<mountpoint>/MyDrive` exists."""
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    answers = os.environ.get("COLAB_DOUBLE_DRIVE", "allowed").split(",")
    answer = _message.next_answer("drive", answers)
    if answer == "refused":
        raise _message.MessageError("Error: credential propagation was unsuccessful")
    path = Path(mountpoint).expanduser()
    if (path / "MyDrive").is_dir() and not force_remount:
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
            f'call drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    _check(path)
    if answer != "allowed":
        raise ValueError(FAILED[answer])
    path.mkdir(exist_ok=True)
    folder = os.environ.get("COLAB_DOUBLE_DRIVE_FOLDER") or tempfile.mkdtemp()
    (path / "MyDrive").symlink_to(folder)
    print(f"Mounted at {mountpoint}")


def _check(path: Path) -> None:
    if path.is_symlink():
        raise ValueError("Mountpoint must not be a symlink")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    if path.exists() and not path.is_dir():
        raise ValueError("Mountpoint must either be a directory or not exist")
    if not path.parent.exists():
        raise ValueError("Mountpoint must be in a directory that exists")


def flush_and_unmount(timeout_ms: int = 24 * 60 * 60 * 1000) -> None:
    """Print that nothing is mounted: the link to the folder stays."""
    print("Drive not mounted, so nothing to flush and unmount.")
