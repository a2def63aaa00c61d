"""Print the growth of anonymous memory in MiB: measure_merge.py BASE ADAPTER OUT."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import safetensors.torch  # noqa: F401  (so that their memory is not the merge's)
import torch  # noqa: F401

from colab_utils import weights


def anonymous() -> float:
    """Return the anonymous memory of this process in MiB."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) / 1024


class Peak(threading.Thread):
    """Watches the anonymous memory until `done` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.done = anonymous(), threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.value = max(self.value, anonymous())


if __name__ == "__main__":
    before, peak = anonymous(), Peak()
    peak.start()
    try:
        base, adapter, out = map(Path, sys.argv[1:])
        weights.merge(base, adapter, out)
    finally:
        peak.done.set()
        peak.join()
    print(peak.value - before)
