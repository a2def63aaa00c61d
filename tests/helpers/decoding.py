"""A check that a decoder computes the scores of a whole forward pass."""

from __future__ import annotations

import torch

LENGTHS = [11, 3, 7]


def random_rows(lengths: list[int], more: int) -> list[list[int]]:
    """Return token ids: rows of these lengths, and `more` tokens each."""
    draw = torch.Generator().manual_seed(3)
    return [
        torch.randint(3, 256, (n + more,), generator=draw).tolist() for n in lengths
    ]


def assert_decodes(model, decoder, lengths=LENGTHS, more: int = 5, rel: float = 1e-6):
    """Compare the scores after every token with those of a whole forward pass."""
    rows = random_rows(lengths, more)
    prompts = [row[:n] for row, n in zip(rows, lengths, strict=True)]
    found = [decoder.start(prompts)]
    for i in range(more):
        tokens = [row[n + i] for row, n in zip(rows, lengths, strict=True)]
        found.append(decoder.step(torch.tensor(tokens)))
    for row, n, scores in zip(rows, lengths, torch.stack(found, 1), strict=True):
        with torch.inference_mode():
            out = model.eval()(input_ids=torch.tensor([row])).logits[0, n - 1 :]
        error = (scores.double() - out.double()).norm() / out.double().norm()
        assert error < rel, (n, error)
