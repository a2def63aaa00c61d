"""Attack a part that writes in place, which loses results: attack_in_place.py FOLDER.

Prints the losses and the mixtures of each attack.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tools.attack import run
from tools.attack.parts import Part


class InPlace(Part):
    """Writes five files over those of the older result."""

    name, place = "in place", Path("datasets/mine")

    def load(self) -> None:
        """Load nothing."""

    def find(self) -> Path:
        """Return the folder."""
        return self.out

    def write(self, version: str) -> None:
        """Write a file each 20 ms."""
        self.out.mkdir(exist_ok=True)
        for number in range(5):
            time.sleep(0.02)
            (self.out / f"{number}.txt").write_text(version)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    part = InPlace(folder / "inputs", folder / "workspace")
    for row in run.attack_part(part, folder, ["moments", "accesses"], 0, 0.1):
        print("row:", row.fault, row.lost, row.mixed, sep="|")
