"""The GPU kernels, in Triton's interpreter, compute what `ops` computes in PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no build for this system")

ROOT = Path(__file__).parents[2]
CHECKS = (
    *("dequantize_nf4", "norm", "add_norm", "norm_backward", "norm_heads", "rotate"),
    *(
        "swiglu",
        "cross_entropy",
        "swiglu_backward",
        "step_on_a_cache",
        "all_kernels_of_a_model",
    ),
)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    """The traceback of each check that failed, None for those that passed."""
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/kernel_checks.py"],
        env=os.environ | settings | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_kernel_matches_pytorch(results, check):
    assert results[check] is None, results[check]


@pytest.mark.slow
def test_kernel_checks_are_complete(results):
    assert set(results) == set(CHECKS)
