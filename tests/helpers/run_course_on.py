"""Run the four notebooks in one process, on several models one after another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helpers.run_cells import SURROUNDINGS, run


def parameters(folder: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of each notebook that differ from its own."""
    model = f"{folder}/model"
    return {
        "01_create_dataset": {"MODEL": model, "DATASET": dataset, "TEST_SHARE": 0.3},
        "02_finetune_qlora": {"MODEL": model, "EPOCHS": 1, "RANK": 4},
        "03_inference": {"MAX_NEW_TOKENS": 8},
        "04_merge_and_publish": {"MAX_TEST": 6},
    }


def course(folder: Path, dataset: str) -> dict[str, Any]:
    """Run the course on one model; return what its notebooks found."""
    os.environ["WORKSPACE"] = f"{folder}/workspace"
    given = parameters(folder, dataset)
    spaces = {name[:2]: run(name, values) for name, values in given.items()}
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


def courses(folders: list[Path], dataset: str) -> list[dict[str, Any]]:
    """Run the course on models; return what the notebooks found on each.

    A folder has a model in `model` and gets a `workspace`.
    """
    os.environ |= SURROUNDINGS
    return [course(folder, dataset) for folder in folders]
