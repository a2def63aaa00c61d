"""Importing a light module of the package loads no heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
LATE |= {"training.keeping", "training.recovery", "hub.network"}
LATE |= {"generation.decoding"}
LATE |= {"fast.attention_kernels", "fast.autograd", "fast.decoder", "fast.kernels"}
LATE |= {"fast.documents", "training.reward_model", "training.classification"}
LATE |= {"fast.loss_kernels", "evaluation.harness", "evaluation.reports"}
LATE |= {"evaluation.benchmarks"}
LATE |= {"fast.layer", "fast.linears", "fast.lora", "fast.loss", "fast.ops"}
LATE |= {"fast.patch", "fast.sharding", "fast.static_cache", "fast.support"}
LATE |= {"fast.decoding_linears", "fast.vector_kernels", "training.rollout_parts"}
LATE |= {"fast.kept_inputs", "fast.recording", "fast.tiled_layer"}
PACKAGE = ROOT / "colab_utils"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
}
LIGHT = sorted(
    {name.removesuffix("__init__").rstrip(".") for name in MODULES} - LATE - {""}
)
# One process imports all modules: nothing that any of them loads is missing at the end.
# tests/test_layout.py shows that each can be the first one, because no imports form a
# cycle. A failure names the first module that has loaded a library.
MEASURE = """
import importlib, json, sys
known = set()
for module in sys.argv[1:]:
    importlib.import_module(module)
    packages = {name.partition(".")[0] for name in sys.modules}
    print(json.dumps([module, sorted(packages - known)]))
    known |= packages
"""


def imported(modules: list[str]) -> dict[str, set[str]]:
    """Return the packages that each import adds in a new process, in this order."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *modules],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    found = map(json.loads, run.stdout.splitlines())
    return {module: set(packages) for module, packages in found}


def test_imports_load_nothing_heavy():
    names = ["colab_utils", *(f"colab_utils.{name}" for name in LIGHT)]
    found = imported(names)
    assert list(found) == names
    heavy = {name: new & HEAVY for name, new in found.items()}
    assert {name: new for name, new in heavy.items() if new} == {}


def test_imported_finds_heavy_library():
    found = imported(["json", "numpy"])
    assert not found["json"] & HEAVY and "numpy" in found["numpy"] & HEAVY
    assert {"runtime", "models", "training.trainer", "widgets.chat"} <= set(LIGHT)
