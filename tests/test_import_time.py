"""Importing a light module of the package loads no heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "numpy", "pandas", "datasets", "peft", "trl"}
HEAVY |= {"matplotlib", "IPython", "ipywidgets", "bitsandbytes", "huggingface_hub"}
# Only training and generation import these, after torch and transformers; the search
# for repeats computes with numpy.
LATE = {"data.repeats.candidates", "data.repeats.engine", "data.repeats.fingerprints"}
LATE |= {"data.repeats.hashes"}
LATE |= {"training.callbacks", "training.sft", "training.preferences", "fast.attention"}
LATE |= {"training.pairs", "training.log_probs", "training.objectives"}
LATE |= {"training.rewards", "training.rollouts", "training.progress"}
LATE |= {"fast.attention_kernels", "fast.autograd", "fast.decoder", "fast.kernels"}
LATE |= {"fast.documents", "training.reward_model", "training.classification"}
LATE |= {"fast.loss_kernels", "evaluation.harness", "evaluation.reports"}
LATE |= {"fast.layer", "fast.linears", "fast.lora", "fast.loss", "fast.ops"}
LATE |= {"fast.patch", "fast.sharding", "fast.static_cache", "fast.support"}
PACKAGE = ROOT / "colab_utils"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
}
LIGHT = sorted(
    {name.removesuffix("__init__").rstrip(".") for name in MODULES} - LATE - {""}
)
MEASURE = """
import json, sys
import {module}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def imported(module: str) -> set[str]:
    """Return the packages that a new process has loaded after an import."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(module=module)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("name", ["", *LIGHT])
def test_import_loads_nothing_heavy(name):
    assert not imported(f"colab_utils.{name}".rstrip(".")) & HEAVY


def test_imported_finds_heavy_library():
    assert "numpy" in imported("numpy") & HEAVY
    assert {"runtime", "models", "training.trainer", "widgets.chat"} <= set(LIGHT)
