from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from colab_utils import memory

HOLD = """
from colab_utils import memory
one = memory.ram()
held = bytearray(200 << 20)
held[::4096] = b"x" * len(held[::4096])
two = memory.ram()
del held
print(two - one, memory.ram() - two)
"""


@pytest.mark.parametrize("available", [8, 23.5])
def test_budget_without_a_gpu_is_the_available_ram(monkeypatch, seven_b, available):
    """A plan that fits it also passes the check of RAM before the download."""
    machine = SimpleNamespace(device="cpu", memory_gib=None)
    monkeypatch.setattr("colab_utils.runtime.detect", lambda: machine)
    ram = SimpleNamespace(available=available * memory.GIB, total=64 * memory.GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: ram)
    found = memory.budget(seven_b())
    assert found / memory.GIB == pytest.approx(available - 2.5 - 0.98, abs=0.01)
    memory.preflight(seven_b(), ".", memory.Memory(weights=found))
    with pytest.raises(MemoryError):
        memory.preflight(seven_b(), ".", memory.Memory(weights=found + 1e6))


def test_budget_of_a_gpu(monkeypatch, seven_b):
    t4 = SimpleNamespace(device="cuda", memory_gib=14.56)
    monkeypatch.setattr("colab_utils.runtime.detect", lambda: t4)
    assert memory.budget(seven_b()) / memory.GIB == pytest.approx(14.26)
    # The first GPU of several is the notebook's, too, and NCCL has buffers.
    assert memory.budget(seven_b(), 2) / memory.GIB == pytest.approx(13.46)


def test_ram_is_the_most_that_was_held():
    run = [sys.executable, "-c", HOLD]
    more, less = map(float, subprocess.check_output(run, text=True).split())
    assert more == pytest.approx(200 / 1024, rel=0.2)
    assert less == pytest.approx(0, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's here")
def test_peak_grows_with_what_is_held():
    import psutil

    process, before = psutil.Process(), memory.peak()
    held = []
    # The process may reuse memory that it holds already, so it takes some blocks.
    while memory.peak() < before + 0.05 and len(held) < 200:
        held.append(torch.ones(2**24))  # 1/16 GiB
    now = process.memory_info().rss / memory.GIB
    assert before + 0.05 <= memory.peak() < before + 0.2
    assert memory.peak() == pytest.approx(now, abs=0.05)
    del held
    memory.release()
