"""The GPU kernels, in Triton's interpreter, compute what `ops` computes in PyTorch."""

from __future__ import annotations

import pytest
from helpers import kernels

pytest.importorskip("triton", reason="Triton has no build for this system")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, str | None]]:
    """For each check and model: the traceback of a failure, or None."""
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return kernels.run_program("kernel_checks", **settings)["checks"]


@pytest.mark.slow
@pytest.mark.parametrize("check", kernels.CHECKS)
def test_kernel_matches_pytorch(results, check):
    failed = {model: failure for model, failure in results[check].items() if failure}
    assert not failed, "\n".join(failed.values())


@pytest.mark.slow
def test_kernel_checks_are_complete(results):
    assert set(results) == set(kernels.CHECKS)
