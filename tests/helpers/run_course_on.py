"""Run the four notebooks in one process on a model folder and a dataset.

    python run_course_on.py MODEL DATASET WORKSPACE

Prints a JSON object with what the notebooks found. A kernel for each notebook would
import the libraries four times.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MODEL, DATASET, WORKSPACE = sys.argv[1:]
os.environ |= {"WORKSPACE": WORKSPACE, "HEADLESS": "1", "MPLBACKEND": "Agg"}
os.environ |= {"CUDA_VISIBLE_DEVICES": ""}
ROOT = Path(__file__).parents[2]
PARAMETERS: dict[str, dict[str, Any]] = {
    "01_create_dataset": {"MODEL": MODEL, "DATASET": DATASET, "TEST_SHARE": 0.3},
    "02_finetune_qlora": {"MODEL": MODEL, "EPOCHS": 1, "RANK": 4},
    "03_inference": {"MAX_NEW_TOKENS": 8},
    "04_merge_and_publish": {"MAX_TEST": 6},
}


def run(name: str) -> dict[str, Any]:
    """Run a notebook's code cells in order; return its variables."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    space: dict[str, Any] = {"__name__": name, "display": lambda *_: None}
    for number, cell in enumerate(notebook["cells"]):
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "setup" in tags:
            continue
        code = compile("".join(cell["source"]), f"{name}, cell {number}", "exec")
        exec(code, space)
        if "parameters" in tags:
            space |= PARAMETERS[name]
    return space


def main() -> None:
    found = {name[:2]: run(name) for name in PARAMETERS}
    tuning, merging = found["02"], found["04"]
    result = {
        "fast": tuning["plan"].fast,
        "losses": tuning["losses"],
        "trained": tuning["result"].training_loss,
        "difference": merging["found"].difference,
        "gguf": merging["exported"].name if merging.get("exported") else None,
        "stops": [],
    }
    if result["gguf"]:
        lines = merging["exported"].with_name("Modelfile").read_text().splitlines()
        result["stops"] = [one for one in lines if one.startswith("PARAMETER stop")]
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
