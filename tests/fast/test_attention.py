from __future__ import annotations

import pytest
import torch

from colab_utils.fast import attention


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [3, 9, 1, 6], [1] * 20 + [60]])
@pytest.mark.parametrize("groups", [4, 2])
def test_attention_inside_documents(lengths, groups):
    torch.manual_seed(0)
    size, heads, total = 8, 4, sum(lengths)
    qkv = torch.randn(total, (heads + 2 * groups) * size, dtype=torch.float64)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    documents = attention.Documents(ends, max(lengths))
    rows = qkv.clone().requires_grad_()
    parts = rows.view(total, -1, size).split([heads, groups, groups], dim=1)
    q, k, v = (t.transpose(0, 1) for t in parts)
    k, v = (t.repeat_interleave(heads // groups, dim=0) for t in (k, v))
    which = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (which[:, None] == which) & torch.ones(total, total).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    expected = expected.transpose(0, 1).flatten(1)
    found, *saved = attention.attention(qkv, heads, groups, documents)
    torch.testing.assert_close(found, expected.detach())
    grad = torch.randn_like(found)
    (expected_grad,) = torch.autograd.grad(expected, rows, grad)
    back = attention.attention_backward(
        grad, qkv, heads, groups, documents, found, *saved
    )
    torch.testing.assert_close(back, expected_grad)
