"""Measure everything again on a GPU: python bench/run.py CHECKPOINT (`make bench`).

CHECKPOINT is a folder with a Llama-2-7B-shaped model; where it is missing, one of
random weights is written there (13.5 GB). Unsloth is measured where UNSLOTH_PATH names
a folder with its packages. Writes bench/results/*.json and bench/results/figure.png.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WAYS = (
    ("fast",),
    ("lean",),
    ("published",),
    ("fast", "mix=0"),
    ("fast", "mix=0", "seq=1024", "bs=2"),
    ("fast", "r=64"),
)
PEER = (
    ("gc=false",),
    ("gc=unsloth",),
    ("gc=false", "mix=0"),
    ("gc=false", "mix=0", "seq=1024", "bs=2"),
    ("gc=false", "r=64"),
)


def make_checkpoint(folder: Path) -> None:
    """Llama 2 7B's shape with random weights, and the demo's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sys.path.insert(0, str(HERE.parent))
    from colab_utils import models

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=4096)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder, max_shard_size="5GB")
    models.load_tokenizer("demo").save_pretrained(folder)


def run(script: str, *arguments: str, path: str | None = None) -> None:
    """One measurement in a process of its own; a failure is told and passed over."""
    command = [sys.executable, str(HERE / script), *arguments]
    env = os.environ | ({"PYTHONPATH": path} if path else {})
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    for line in result.stdout.splitlines():
        if line.startswith(("SPEED", "DECODE", "PEAK", "LOADING", "mean", "loss")):
            print(line, flush=True)
    if result.returncode:
        print(f"{script} {' '.join(arguments)} failed", flush=True)


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("There is no GPU here; bench/curve.py is all that can be measured.")
    checkpoint, results = Path(sys.argv[1]), HERE / "results"
    if not checkpoint.exists():
        make_checkpoint(checkpoint)
    results.mkdir(exist_ok=True)
    for name in ("speed.json", "decode.json"):
        (results / name).unlink(missing_ok=True)
    os.environ["LLAMA_7B"] = str(checkpoint)
    for way in WAYS:
        run("speed.py", way[0], str(checkpoint), *way[1:])
    if path := os.environ.get("UNSLOTH_PATH"):
        for options in PEER:
            run("speed.py", "unsloth", str(checkpoint), *options, path=path)
        for options in ((), ("batch=8",)):
            run("decode.py", "unsloth", str(checkpoint), *options, path=path)
    for way in ("ours", "generate", "static"):
        run("decode.py", way, str(checkpoint))
    for way in ("ours", "generate"):
        run("decode.py", way, str(checkpoint), "batch=8")
    run("peaks.py", str(results / "peaks.json"))
    run("loading.py", str(checkpoint), f"{checkpoint}-4bit")
    run("loading.py", f"{checkpoint}-4bit")
    run("curve.py")
    run("figure.py")


if __name__ == "__main__":
    main()
