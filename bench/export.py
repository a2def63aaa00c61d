"""Measure RAM and time of a GGUF export of Llama 2 7B's shape.

    python bench/export.py FOLDER

Writes the model of bench/merge.py to FOLDER, which needs 27 GB, with the demo's
tokenizer. Measures a copy of the files and both kinds of GGUF, each in a process of its
own. Writes bench/results/export.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from merge import make
from sampling import Sampler, each, settle

OUT = Path(__file__).parent / "results" / "export.json"
WAYS = ("copy", "q8_0", "f16")


def measure(way: str, folder: Path) -> dict:
    """Measure one way, in this process."""
    import torch  # noqa: F401  (importing it is not part of the export)
    import transformers  # noqa: F401

    from colab_utils import weights

    base, out = folder / "base", folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    settle(base)
    with Sampler() as sampler:
        if way == "copy":
            subprocess.run(["cp", "-r", base, out], check=True)
        else:
            weights.write_gguf(base, out / "model.gguf", way)
        subprocess.run(["sync", "-f", folder], check=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    shutil.rmtree(out)
    return {"way": way, "bytes": size, **sampler.result()}


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2 and sys.argv[2] in WAYS:
        print(json.dumps(measure(sys.argv[2], folder)))
        return
    if not (folder / "adapter" / "adapter_config.json").exists():
        make(folder, files=6)
    for file in (folder / "adapter").glob("tokenizer*"):
        shutil.copy(file, folder / "base")
    OUT.write_text(json.dumps(each(__file__, folder, WAYS), indent=1) + "\n")


if __name__ == "__main__":
    main()
