"""The operations in PyTorch, on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from colab_utils.fast import ops


def test_norm_float16_is_computed_in_float32():
    x = torch.randn(3, 64).half()
    x[0, 0] = 900  # as large as Llama 2's own; its square overflows float16
    weight, grad = torch.ones(64).half(), torch.randn(3, 64).half()
    expected = ops.norm(x.float(), weight.float(), 1e-5)
    torch.testing.assert_close(ops.norm(x, weight, 1e-5), expected.half())
    wide = [t.float() for t in (grad, x, weight, torch.zeros_like(x))]
    expected = ops.norm_backward(*wide, 1e-5)
    found = ops.norm_backward(grad, x, weight, torch.zeros_like(x), 1e-5)
    torch.testing.assert_close(found, expected.half())


def test_on_gpu_takes_the_kernel_for_a_tensor_on_a_gpu(monkeypatch):
    """A kernel of the same name gets all arguments; a tensor on the CPU has none."""
    kernels = SimpleNamespace(add=lambda x, y, times=1: ("kernel", y, times))
    monkeypatch.setattr(ops, "triton_module", {"some_kernels": kernels}.get)
    monkeypatch.setattr(ops, "has_triton", lambda: True)

    @ops.on_gpu("some_kernels")
    def add(x, y, times=1):
        return ("reference", y, times)

    gpu = SimpleNamespace(is_cuda=True)
    assert add(gpu, 2, times=3) == ("kernel", 2, 3)
    assert add(torch.ones(1), 2, times=3) == ("reference", 2, 3)
    monkeypatch.setattr(ops, "has_triton", lambda: False)
    assert add(gpu, 2) == ("reference", 2, 1)
