"""Run the four notebooks in one process, on several models one after another.

    python run_course_on.py DATASET FOLDER ...

Each FOLDER has a model in `model` and gets a `workspace`. Prints a JSON list with what
the notebooks found. A kernel for each notebook would import the libraries each time.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from run_cells import load_libraries, run

DATASET, *FOLDERS = sys.argv[1:]


def parameters(folder: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of each notebook that differ from its own."""
    model = f"{folder}/model"
    return {
        "01_create_dataset": {"MODEL": model, "DATASET": DATASET, "TEST_SHARE": 0.3},
        "02_finetune_qlora": {"MODEL": model, "EPOCHS": 1, "RANK": 4},
        "03_inference": {"MAX_NEW_TOKENS": 8},
        "04_merge_and_publish": {"MAX_TEST": 6},
    }


def course(folder: str) -> dict[str, Any]:
    """Run the course on one model; return what its notebooks found."""
    os.environ["WORKSPACE"] = f"{folder}/workspace"
    spaces = {name[:2]: run(name, given) for name, given in parameters(folder).items()}
    tuning, merging = spaces["02"], spaces["04"]
    exported, stops = merging.get("exported"), []
    if exported:
        lines = exported.with_name("Modelfile").read_text().splitlines()
        stops = [one for one in lines if one.startswith("PARAMETER stop")]
    return {
        "fast": tuning["plan"].fast,
        "losses": tuning["losses"],
        "difference": merging["found"].difference,
        "gguf": exported.name if exported else None,
        "stops": stops,
    }


def main() -> None:
    load_libraries()
    found = []
    for folder in FOLDERS:
        print(f"== {folder}", flush=True)
        found.append(course(folder))
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
