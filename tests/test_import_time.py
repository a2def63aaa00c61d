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
# Imported by training and answering alone, once torch and transformers are there.
LATE = {"training.callbacks", "fast.attention", "fast.attention_kernels"}
LATE |= {"fast.autograd", "fast.decoder", "fast.kernels", "fast.layer", "fast.linears"}
LATE |= {"fast.lora", "fast.loss", "fast.ops", "fast.patch", "fast.static_cache"}
LATE |= {"fast.support", "training.sft"}
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
    """The packages that an import brings in a fresh process."""
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
def test_an_import_brings_nothing_heavy(name):
    assert not imported(f"colab_utils.{name}".rstrip(".")) & HEAVY


def test_what_is_heavy_would_be_seen():
    assert "numpy" in imported("numpy") & HEAVY
    assert {"runtime", "models", "training.trainer", "widgets.chat"} <= set(LIGHT)
