"""A T4's kernels, on the GPU that is here, compute what PyTorch computes in float32.

The driver compiles Triton's PTX for compute capability 7.5 to this GPU's own code. The
sizes are those of real models, and the dtype is float16, as on a T4.
"""

from __future__ import annotations

import pytest
import torch
from helpers import kernels

pytest.importorskip("triton", reason="Triton has no build for this system")


@pytest.fixture(scope="module")
def results() -> dict:
    """The traceback of each failure by check and model, and the kernels that ran."""
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (7, 5):
        pytest.skip(f"this GPU, {major}.{minor}, can't run code for 7.5")
    return kernels.run_program("kernel_checks")


@pytest.mark.parametrize("model", kernels.MODELS)
@pytest.mark.parametrize("check", kernels.CHECKS)
def test_kernel_for_75_matches_pytorch(results, check, model):
    failure = results["checks"][check][model]
    assert failure is None, failure


def test_kernels_for_75_are_complete(results):
    assert set(results["loaded"]) == kernels.names()
    assert set(results["checks"]) == set(kernels.CHECKS)
