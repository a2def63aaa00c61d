"""Prompts that share a decoder are continued as each of them alone."""

from __future__ import annotations

import pytest
import torch
from helpers.llamas import small_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils.fast.decoder import ReferenceDecoder
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.generation.decoding import decode
from colab_utils.generation.sampling import sampler

MOST = 12  # tokens of a prompt and of what follows it
Prompts = list[tuple[list[int], int]]  # token ids, and how many follow
PROMPTS = st.lists(
    st.tuples(
        st.lists(st.integers(3, 255), min_size=1, max_size=MOST), st.integers(1, MOST)
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def model():
    return small_llama().eval()


def decoded(decoder, prompts: Prompts, **sampling) -> tuple[list[list[int]], list[int]]:
    """Return the tokens after each prompt, and the order in which prompts ended."""
    found: list[list[int]] = [[] for _ in prompts]

    def add(i: int, token: int) -> bool:
        found[i].append(token)
        return len(found[i]) == prompts[i][1]

    ids = [prompt for prompt, _ in prompts]
    return found, [*decode(decoder, ids, sampler(**sampling), add)]


@settings(max_examples=settings.default.max_examples // 4, deadline=None)
@given(prompts=PROMPTS, rows=st.integers(1, 5))
def test_prompts_are_continued_as_each_alone(model, prompts, rows):
    found, ended = decoded(StaticDecoder(model, rows, 2 * MOST), prompts)
    alone = StaticDecoder(model, 1, 2 * MOST)
    assert found == [decoded(alone, [one])[0][0] for one in prompts]
    assert sorted(ended) == [*range(len(prompts))]


def test_prompts_on_the_reference_path(model):
    prompts = [([5, 6, 7], 2), ([9], 6), ([5, 8], 1), ([4, 4, 4, 4], 3), ([7], 1)]
    alone = StaticDecoder(model, 1, 2 * MOST)
    expected = [decoded(alone, [one])[0][0] for one in prompts]
    assert decoded(ReferenceDecoder(model, 2), prompts)[0] == expected


def test_each_sampled_token_is_one_of_its_row(model):
    """With top_k = 2 it is one of the two that the whole text makes most probable."""
    prompts = [([5 + i % 7] * (1 + i % 5), 1 + i % 9) for i in range(24)]
    settings = {"do_sample": True, "top_k": 2}

    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return decoded(StaticDecoder(model, 4, 2 * MOST), prompts, **settings)[0]

    found = draw(0)
    for (prompt, count), tokens in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0]
        best = logits[len(prompt) - 1 : -1].topk(2).indices
        assert len(best) == len(tokens) == count
        assert (best == torch.tensor(tokens)[:, None]).any(1).all()
    assert draw(0) == found != draw(1)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_freed_row_takes_the_next_prompt(model, monkeypatch, do_sample):
    """Ten long answers hold up no others: under 100 steps instead of 390."""
    prompts = [([5, i], 40 if i % 10 == 9 else 1) for i in range(3, 103)]
    decoder, steps = StaticDecoder(model, 10, 50), []
    step = decoder.step
    monkeypatch.setattr(
        decoder, "step", lambda tokens: steps.append(len(tokens)) or step(tokens)
    )
    found, _ = decoded(decoder, prompts, do_sample=do_sample)
    assert [*map(len, found)] == [count for _, count in prompts]
    assert sum(steps) == 10 * 39  # a row whose answer has ended is not computed
    assert len(steps) < 100


def test_an_error_of_the_caller_is_raised(model):
    def fail(i: int, token: int) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [*decode(StaticDecoder(model, 2, 8), [[5], [6]], sampler(), fail)]
