"""Decode many prompts: a row whose answer has ended takes the next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from colab_utils.fast.static_cache import StaticDecoder

if TYPE_CHECKING:
    from colab_utils.fast.decoder import ReferenceDecoder
    from colab_utils.generation.sampling import Sampler

# Reading prompts takes about as long as two steps, however few they are. So they are
# read once the rows without a prompt have cost as much: that of two steps of all rows.
IDLE_STEPS = 2


def decode(
    decoder: StaticDecoder | ReferenceDecoder,
    prompts: list[list[int]],
    sample: Sampler,
    add: Callable[[int, int], bool],
) -> Iterator[int]:
    """Continue prompts of token ids; yield the number of each when it has ended.

    `add` takes the number of a prompt and its next token, and returns whether the
    prompt has ended. Shorter prompts begin first. With a `ReferenceDecoder`, all
    prompts of a batch end before the next batch begins. Continuous batching is from
    Orca (Yu et al. 2022).
    """
    refills = decoder if isinstance(decoder, StaticDecoder) else None
    waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))

    def take(count: int) -> list[int]:
        return [waiting.popleft() for _ in range(min(count, len(waiting)))]

    rows: list[int] = []  # the prompt in each row of the decoder
    ended: set[int] = set()
    idle, patience = 0, IDLE_STEPS * decoder.rows  # steps of rows without a prompt
    while waiting or rows:
        if not rows:
            rows, idle = take(decoder.rows), 0
            logits = decoder.start([prompts[i] for i in rows])
        elif refills and waiting and idle >= patience:
            new, idle = take(decoder.rows - len(rows)), 0
            logits = torch.cat([logits, refills.add([prompts[i] for i in new])])
            rows = rows + new
        tokens = sample(logits)
        for i, token in zip(rows, tokens.tolist(), strict=True):
            if i not in ended and add(i, token):
                ended.add(i)
                yield i
        left = [place for place, i in enumerate(rows) if i not in ended]
        if refills and 0 < len(left) < len(rows):
            left = refills.keep(left)
            rows, tokens = [rows[place] for place in left], tokens[left]
        if left:
            logits = decoder.step(tokens)
            idle += decoder.rows - len(rows)
        else:
            rows = []
