from __future__ import annotations

import torch

from colab_utils.fast.loss import CrossEntropy


def test_cross_entropy_in_chunks():
    torch.manual_seed(0)
    x = torch.randn(37, 16, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 16, dtype=torch.float64)
    targets = torch.randint(50, (37,))
    expected = torch.nn.functional.cross_entropy(x @ head.T, targets, reduction="sum")
    (grad,) = torch.autograd.grad(expected, x)
    for chunk in (5, 37, 64):
        total, _ = CrossEntropy.apply(x, head, targets, chunk)
        (found,) = torch.autograd.grad(total * 3, x)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(found, 3 * grad)
