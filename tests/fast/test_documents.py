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
@settings(deadline=None)
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


SIZE = st.integers(1, 12)


@given(
    st.lists(
        st.tuples(SIZE, st.lists(SIZE, min_size=1, max_size=4)), min_size=1, max_size=6
    ),
    st.integers(1, 200),
)
@settings(deadline=None)
def test_share_keeps_one_copy_of_each_shared_token(prompts, limit):
    """Expanded again, the tokens are those of the whole documents.

    The prompts have one to four answers. All first answers come first.
    """
    rows = [
        (owner, prompt, answers[turn], turn)
        for turn in range(4)
        for owner, (prompt, answers) in enumerate(prompts)
        if turn < len(answers)
    ]
    lengths = [prompt + answer for _, prompt, answer, _ in rows]
    shared = torch.tensor(
        [[owner, (prompt - 1) * (turn > 0)] for owner, prompt, _, turn in rows]
    )
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    first = torch.tensor([prompt for _, prompt, _, _ in rows])
    ids = 100 * torch.arange(len(lengths))[:, None] + torch.arange(max(lengths))
    for row, (owner, prompt, _, _) in enumerate(rows):
        ids[row, :prompt] = ids[owner, :prompt]
    labels = torch.where(torch.arange(max(lengths)) < first[:, None], -100, ids)
    whole = documents.flatten(labels.where(mask, -100), mask, None, limit)
    found = documents.share(whole, mask, shared)
    unique = ids[mask][found.order]
    assert len(unique) == sum(lengths) - int(shared[:, 1].sum())
    in_order = ids[mask] if whole.order is None else ids[mask][whole.order]
    assert torch.equal(unique[found.shared.expand], in_order)
    assert torch.equal(in_order[found.shared.back], unique)
    assert torch.equal(found.positions[found.shared.expand], whole.positions)
    assert torch.equal(whole.targets[found.shared.back], found.targets)
    assert (found.targets != -100).sum() == (whole.targets != -100).sum()


def test_flatten_leaves_short_rows_as_they_are():
    labels = torch.arange(100)[None]
    positions = torch.tensor([*range(10), *range(90)])[None]
    found = documents.flatten(labels, None, positions)
    assert found.order is None and len(found.groups) == 1
