"""Run all measurements that need a GPU (`make bench`).

    python bench/run.py CHECKPOINT [speed] [brim] [peers] [decode] ...

CHECKPOINT is a folder with a model of Llama 2 7B's shape. If it is missing, a model of
random weights is written there (13.5 GB). Without names of parts, all parts are
measured, in half an hour. `peers` measures Unsloth as the baseline, if UNSLOTH_PATH
names a folder with its packages. Writes bench/results/*.json and
bench/results/figure.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PARTS = {  # the scripts of each part; MODEL stands for the checkpoint
    "speed": (
        "speed.py fast MODEL",
        "speed.py lean MODEL",
        "speed.py published MODEL",
        "speed.py fast MODEL mix=0",
        "speed.py fast MODEL mix=0 seq=1024 bs=2",
        "speed.py fast MODEL r=64",
    ),
    "brim": (  # as much as the plan puts on a T4
        "speed.py fast MODEL seq=3328",
        "speed.py fast MODEL seq=3072 r=64",
        "speed.py fast MODEL seq=8192 recompute=21",
    ),
    "peers": (
        "speed.py unsloth MODEL gc=false",
        "speed.py unsloth MODEL gc=unsloth",
        "speed.py unsloth MODEL gc=false mix=0",
        "speed.py unsloth MODEL gc=false mix=0 seq=1024 bs=2",
        "speed.py unsloth MODEL gc=false r=64",
        "decode.py unsloth MODEL",
        "decode.py unsloth MODEL batch=8",
        "preferences.py unsloth MODEL",
    ),
    "decode": (
        "decode.py ours MODEL",
        "decode.py ours MODEL batch=8",
        "decode.py generate MODEL",
        "decode.py generate MODEL batch=8",
        "decode.py static MODEL",
    ),
    "preferences": (
        "preferences.py fast MODEL",
        "preferences.py sft MODEL",
        "preferences.py trl MODEL",
        "preferences.py trl MODEL gc=0",
    ),
    "peaks": ("peaks.py",),
    "loading": ("loading.py MODEL MODEL-4bit", "loading.py MODEL-4bit"),
    "curve": ("curve.py",),
    "shapes": ("shapes.py",),
}


def make_checkpoint(folder: Path) -> None:
    """Save random weights in Llama 2 7B's shape, with the demo's tokenizer."""
    from transformers import LlamaConfig

    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import emulate

    from colab_utils import models

    emulate.random_model(LlamaConfig(max_position_embeddings=4096), folder)
    models.load_tokenizer("demo").save_pretrained(folder)


def run(script: str, *arguments: str, path: str | None = None) -> bool:
    """Run one measurement in a process of its own; return whether it succeeded."""
    command = [sys.executable, str(HERE / script), *arguments]
    env = os.environ | ({"PYTHONPATH": path} if path else {})
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    for line in result.stdout.splitlines():
        if line.startswith(
            ("SPEED", "DECODE", "PREF", "PEAK", "LOADING", "SHAPE", "mean", "loss")
        ):
            print(line, flush=True)
    if result.returncode:
        print(f"{script} {' '.join(arguments)} failed", flush=True)
    return not result.returncode


def forget(part: str) -> None:
    """Remove a part's earlier rows from the result files that scripts append to."""

    def belongs(name: str, row: dict) -> bool:
        if name == "loading":
            return part == "loading"
        if row["way"] == "unsloth":
            return part == "peers"
        return part == ("brim" if row.get("seq", 0) > 2048 else name)

    for name in ("speed", "decode", "preferences", "loading"):
        file = RESULTS / f"{name}.json"
        if file.exists():
            rows = json.loads(file.read_text())
            rows = [row for row in rows if not belongs(name, row)]
            file.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    import torch

    checkpoint, parts = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        sys.exit(
            f"There is no part {', '.join(unknown)}; there are {', '.join(PARTS)}."
        )
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here; bench/curve.py is all that can be measured.")
    path = os.environ.get("UNSLOTH_PATH")
    if "peers" in parts and not path:
        print("Unsloth is left out: UNSLOTH_PATH names no folder with its packages.")
        parts.remove("peers")
    make_checkpoint(checkpoint)
    RESULTS.mkdir(exist_ok=True)
    os.environ["LLAMA_7B"] = str(checkpoint)
    good = True
    for part in parts:
        forget(part)
        for line in PARTS[part]:
            words = [word.replace("MODEL", str(checkpoint)) for word in line.split()]
            good &= run(*words, path=path if part == "peers" else None)
    sys.exit(not (run("figure.py") and good))


if __name__ == "__main__":
    main()
