"""Run code in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Environment variables that say where a notebook runs.
PLACES = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "CI", "HEADLESS", "WORKSPACE")


def run(code: str, *path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, with `path` first on its import path."""
    clean = {k: v for k, v in os.environ.items() if k not in PLACES}
    search = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": search} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
