"""Memory of a process while it does something, sampled every 20 ms."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Sampler(threading.Thread):
    """`with Sampler() as s: ...`, then `s.peak` in GiB and `s.seconds`.

    RssAnon is what the process holds itself; VmRSS counts pages of files, too.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.peak = {"RssAnon": 0.0, "VmRSS": 0.0}

    def run(self) -> None:
        while not self.done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    gib = int(value.split()[0]) / 2**20
                    self.peak[name] = max(self.peak[name], gib)

    def __enter__(self) -> Sampler:
        self.began = time.time()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.time() - self.began
        self.done.set()
        self.join()

    def result(self) -> dict[str, float]:
        """Seconds and GiB, rounded for a file of results."""
        peak = {name: round(value, 3) for name, value in self.peak.items()}
        return {"seconds": round(self.seconds, 1), **peak}
