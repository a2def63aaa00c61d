from __future__ import annotations

import pytest
import torch

from colab_utils.fast.loss import NormedCrossEntropy


@pytest.fixture
def given() -> tuple:
    torch.manual_seed(0)
    x = torch.randn(37, 16, dtype=torch.float64, requires_grad=True)
    weight, head = torch.randn(16).double(), torch.randn(50, 16).double()
    targets = torch.randint(50, (37,))
    targets[::3] = -100
    return x, weight, 1e-5, head, targets


def test_loss_in_chunks(given):
    x, weight, eps, head, targets = given
    logits = torch.nn.functional.rms_norm(x, (16,), weight, eps) @ head.T
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (grad,) = torch.autograd.grad(expected, x)
    hits = (logits.argmax(-1) == targets).sum()
    for chunk in (5, 37, 64):
        losses, correct = NormedCrossEntropy.apply(*given, chunk)
        (found,) = torch.autograd.grad(losses.sum() * 3, x)
        torch.testing.assert_close(losses.sum(), expected)
        assert (losses[targets == -100] == 0).all()
        torch.testing.assert_close(found, 3 * grad)
        assert correct == hits


def test_loss_refuses_a_second_backward_pass(given):
    # The gradient is computed in the memory of the first one.
    losses, _ = NormedCrossEntropy.apply(*given, 8)
    torch.autograd.grad(losses.sum(), given[0], retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(losses.sum(), given[0])


def test_loss_with_weights_for_tokens(given):
    """As in DPO, where the loss of each answer has a weight of its own."""
    x, weight, eps, head, targets = given
    scales = torch.randn(37).double()
    logits = torch.nn.functional.rms_norm(x, (16,), weight, eps) @ head.T
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad((each * scales).sum(), x)
    losses, _ = NormedCrossEntropy.apply(*given, 8)
    (found,) = torch.autograd.grad((losses * scales).sum(), x)
    torch.testing.assert_close(found, expected)
