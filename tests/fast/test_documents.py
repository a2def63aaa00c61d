from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils.fast import documents


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25),
    st.integers(1, 400),
)
@settings(deadline=None, max_examples=100)
def test_flatten_keeps_every_document(lengths, limit):
    """Every document keeps its tokens in order; the padding of a group is bounded."""
    total = sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    labels = torch.arange(1, total + 1)[None]
    found = documents.flatten(labels, None, positions, limit)
    plain = documents.flatten(labels, None, positions, total * len(lengths))
    order = torch.arange(total) if found.order is None else found.order
    assert sorted(order.tolist()) == list(range(total))
    assert torch.equal(found.targets, plain.targets[order])
    assert torch.equal(found.positions, positions[0, order])
    seen, token = [], 0
    for rows, (ends, longest) in found.groups:
        sizes = ends.diff().tolist()
        assert max(sizes) == longest
        assert len(sizes) == 1 or len(sizes) * longest <= limit
        seen += sizes
        token += sum(sizes)
        assert rows.stop in (None, token)
    assert sorted(seen) == sorted(lengths) and found.longest == max(lengths)
    begins = [0, *itertools.accumulate(seen)][:-1]
    assert (found.positions == 0).nonzero().squeeze(1).tolist() == begins


def test_flatten_leaves_short_rows_as_they_are():
    labels = torch.arange(100)[None]
    positions = torch.tensor([*range(10), *range(90)])[None]
    found = documents.flatten(labels, None, positions)
    assert found.order is None and len(found.groups) == 1
