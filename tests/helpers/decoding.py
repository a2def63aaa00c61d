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
    for row, scores in zip(rows, torch.stack(found, 1), strict=True):
        assert_scores(model, row, scores, rel)


def assert_scores(model, row: list[int], scores, rel: float) -> None:
    """Compare the scores after the last tokens of a row with a whole forward pass."""
    scores = scores.view(-1, scores.shape[-1]).double()
    ids = torch.tensor([row], device=scores.device)
    with torch.inference_mode():
        out = model.eval()(input_ids=ids).logits[0, -len(scores) :].double()
    error = (scores - out).norm() / out.norm()
    assert error < rel, (len(row), error)


def assert_rows_leave_and_join(model, decoder, rel: float = 1e-6) -> None:
    """Compare scores while rows leave a decoder of four rows and others join."""
    a, b, c, d = random_rows([11, 3, 7, 9], 0)
    rows: list[list[int]] = []
    next_token = iter(range(3, 250))

    def check(scores) -> None:
        for row, one in zip(rows[-len(scores) :], scores, strict=True):
            assert_scores(model, row, one, rel)

    def step() -> None:
        for row in rows:
            row.append(next(next_token))
        tokens = torch.tensor([row[-1] for row in rows], device=decoder.device)
        check(decoder.step(tokens))
        assert decoder.lengths.tolist() == [*map(len, rows)] + [0] * (4 - len(rows))

    def keep(some: list[int]) -> None:
        places = decoder.keep(some)
        assert sorted(places) == some
        rows[:] = [rows[place] for place in places]

    def join(prompts, scores) -> None:
        rows.extend(map(list, prompts))
        check(scores)

    for _ in range(2):  # nothing remains of the first round
        rows.clear()
        join([a, b, a, c], decoder.start([a, b, a, c]))
        step()
        keep([1, 2])
        step()
        join([b, b], decoder.add([b, b]))
        step()
        keep([0, 1, 3])
        join([d], decoder.add([d]))
        step()
        keep([2])
        step()


def assert_reads_several_tokens(model, decoder, rel: float = 1e-6) -> None:
    """Compare the scores of tokens that are read at once, of which some stay."""
    (prompt,) = random_rows([11], 0)
    for _ in range(2):  # nothing remains of the first round
        row = [*prompt]
        decoder.start([row])
        for tokens, count in (([5, 9, 7, 8], 2), ([4], 1), ([6, 3, 11], 3)):
            assert_scores(model, row + tokens, decoder.read(tokens), rel)
            decoder.accept(count)
            row += tokens[:count]
            assert decoder.lengths.tolist() == [len(row)]
        row.append(12)
        scores = decoder.step(torch.tensor([12], device=decoder.device))
        assert_scores(model, row, scores, rel)
