"""Attack one part with each fault, in a process of its own."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.attack.parts import Dataset, Export, Merge, Part, Report
from tools.attack.trainings import DPO, GRPO, SFT

if TYPE_CHECKING:
    from tools.attack.target import Row

PARTS: dict[str, type[Part]] = {
    kind.name: kind for kind in (SFT, DPO, GRPO, Merge, Export, Dataset, Report)
}


def quiet() -> None:
    """Let torch compute in one thread, which a fork survives, and hide warnings."""
    os.environ |= {"HEADLESS": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    from colab_utils import runtime

    runtime.quiet()


def attack(name: str, faults: Sequence[str], seed: int, share: float) -> list[Row]:
    """Attack a part in this process, and return its rows of the table."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        part = PARTS[name](Path(folder, "inputs"), Path(folder, "workspace"))
        return attack_part(part, Path(folder), faults, seed, share)


def attack_part(
    part: Part, folder: Path, faults: Sequence[str], seed: int, share: float
) -> list[Row]:
    """Return the rows of a part whose inputs and workspace are in `folder`."""
    from tools.attack.target import Target
    from tools.attack.trials import ATTACKS

    part.prepare()
    part.load()
    part.rehearse()
    gc.freeze()  # forked processes share the memory of what is loaded
    target = Target(part, folder, seed)
    rows: list[Row] = []
    for fault in faults:
        strike, *counts = ATTACKS[fault]
        if tries := counts[part.cost]:
            began = time.monotonic()
            found = strike(target, max(1, round(share * tries)))
            seconds = time.monotonic() - began
            print(f"{part.name}: {fault}, {seconds:.0f} s", flush=True)
            for note in (note for row in found for note in row.notes):
                print(f"  {note}", flush=True)
            rows += found
    return rows
