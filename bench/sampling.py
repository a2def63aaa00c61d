"""Measure processes one after another: their time, and memory sampled every 20 ms."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path


class Sampler(threading.Thread):
    """Measures a block: `with Sampler() as s: ...`, then `s.peak` (GiB), `s.seconds`.

    RssAnon is the process's own memory; VmRSS also counts pages of files.
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
        """Return seconds and GiB, rounded for a result file."""
        peak = {name: round(value, 3) for name, value in self.peak.items()}
        return {"seconds": round(self.seconds, 1), **peak}


def settle(folder: Path) -> None:
    """Read a folder's files, so that each run starts with them in the disk cache.

    Also write all pending data to the disk.
    """
    for file in folder.iterdir():
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(["sync", "-f", folder], check=True)


def each(script: str, folder: Path, ways: tuple[str, ...]) -> list[dict]:
    """Run `script FOLDER WAY` for each way in a new process; return the results."""
    found = []
    for way in ways:
        command = [sys.executable, script, str(folder), way]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{way} failed (rc {run.returncode})", flush=True)
            continue
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return found
