"""Each kernel compiles to machine code for a T4 (compute capability 7.5).

No GPU takes part. Another Triton than the installed one, such as Colab's:
    pip install --no-deps --target /tmp/triton-3.6 triton==3.6.0
    PYTHONPATH=/tmp/triton-3.6 python -m pytest tests/fast/test_compile_75.py
"""

from __future__ import annotations

import re

import pytest
from helpers import kernels

pytest.importorskip("triton", reason="Triton has no build for this system")
pytestmark = pytest.mark.slow

HEAD_NORMS = {"_norm_heads", "_norm_heads_backward"}
# What is found in a kernel with one mistake. Triton emulates some types of newer GPUs;
# where it doesn't, the kernel does not compile.
PLANTED = {
    "float8 that Triton emulates": r"float8|requires \.target sm_80",
    "float8 of newer GPUs": "fp8e4nv not supported",
    "bfloat16": r"bfloat16|'\.bf16' requires \.target sm_80",
    "float32 argument": "no float16 argument",
    "shared memory": "131072 bytes of shared memory",
    "spills": r"spills: \d+ bytes of stack",
    "asynchronous copy": r"'cp\.async\.wait_all' requires \.target sm_80",
    "tensor cores of newer GPUs": r"'\.m16n8k16' requires \.target sm_80",
}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """What each kernel needs, for each model that calls it."""
    return kernels.run_program("compile_for_75")


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    """The problems found in kernels with one mistake each."""
    return kernels.run_program("planted_kernels")


@pytest.mark.parametrize("model", kernels.MODELS)
def test_kernels_of_a_model_suit_a_t4(results, model):
    """Each kernel of the package is compiled, and none has a problem."""
    found = [result for result in results if result["model"] == model]
    norms = set() if kernels.MODELS[model].qk_norm else HEAD_NORMS
    assert {result["kernel"] for result in found} == kernels.names() - norms
    problems = {r["kernel"]: r["problems"] for r in found if r["problems"]}
    assert not problems, problems


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistake_is_found(planted, mistake):
    (problem,) = planted[mistake]
    assert re.search(PLANTED[mistake], problem), problem


def test_planted_kernels_are_complete(planted):
    assert planted.pop("no mistake") == []
    assert set(planted) == set(PLANTED)
