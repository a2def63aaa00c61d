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
LATE = {"callbacks", "decoding", "kernels", "layers", "ops", "triton_ops"}
LIGHT = sorted(
    path.stem
    for path in (ROOT / "colab_utils").glob("*.py")
    if path.stem not in LATE | {"__init__"}
)
MEASURE = """
import json, sys, time
start = time.process_time()  # not the clock: other processes may be busy
import {module}
spent = time.process_time() - start
print(json.dumps([spent, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def imported(module: str) -> tuple[float, set[str]]:
    """Seconds that an import takes in a fresh process, and the packages it brought."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(module=module)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    spent, names = json.loads(run.stdout)
    return spent, set(names)


@pytest.mark.parametrize("name", ["", *LIGHT])
def test_an_import_is_quick_and_brings_nothing_heavy(name):
    module = f"colab_utils.{name}".rstrip(".")
    spent, brought = imported(module)
    assert not brought & HEAVY
    if spent >= 0.3:  # the first time its bytecode is written
        spent, _ = imported(module)
    assert spent < 0.3


def test_what_is_heavy_would_be_seen():
    assert "numpy" in imported("numpy")[1] & HEAVY
    assert {"runtime", "models", "training", "widgets"} <= set(LIGHT)
