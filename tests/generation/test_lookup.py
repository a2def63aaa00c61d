"""Guesses at the next tokens are those that followed the same tokens before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import generation
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.generation import answering, lookup
from colab_utils.generation.answer_text import AnswerText
from colab_utils.generation.lookup import Lookup
from colab_utils.generation.sampling import greedy

TOKENS = st.lists(st.integers(0, 3), max_size=20)


def expected(tokens: list[int], most: int) -> list[int]:
    """Return the guesses by a search from the end."""
    for size in lookup.SIZES:
        last = tokens[-size:]
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == last:
                return tokens[end : end + most]
    return []


@given(prompt=TOKENS, answer=TOKENS, most=st.integers(1, 4))
def test_guesses_follow_the_same_tokens(prompt, answer, most):
    found = Lookup(prompt)
    for token in answer:
        found.right = 1.0
        assert found.guesses(most) == expected(found.tokens, most)
        found.add(token)
    assert found.tokens == prompt + answer


def test_guesses_end_while_they_are_wrong():
    found = Lookup([1, 2, 3] * 3)
    assert found.guesses(3) == [1, 2, 3]
    for token in range(10, 40):  # after two known tokens comes a new one
        for known in (1, 2, token):
            found.add(known)
    found.add(1)
    found.add(2)
    found.right, right = 1.0, found.right
    assert found.guesses(3) == [39, 1, 2]
    found.right = right
    assert not found.guesses(3)
    for token in [1, 2, 3] * 10:
        found.add(token)
    assert found.guesses(3) == [1, 2, 3]


@pytest.mark.parametrize(
    "prompt", ["What is the capital of Peru?", "Repeat: a b c a b"]
)
def test_guesses_change_no_token(model, tokenizer, prompt, monkeypatch):
    counts = {"read": 0, "step": 0}

    def counted(name):
        whole = getattr(StaticDecoder, name)

        def count(self, *given):
            counts[name] += 1
            return whole(self, *given)

        monkeypatch.setattr(StaticDecoder, name, count)

    class Noted(Lookup):
        def __init__(self, prompt):
            super().__init__(prompt)
            self.start = len(prompt)
            made.append(self)

    made: list[Noted] = []
    monkeypatch.setattr(answering, "Lookup", Noted)
    for name in counts:
        counted(name)
    texts, steps = [], []
    for least in (2.0, -1.0):  # never, and whenever there are guesses
        monkeypatch.setattr(lookup, "LEAST", least)
        texts.append("".join(generation.stream(model, tokenizer, prompt, 60)))
        steps.append(counts["step"] + counts["read"])
        assert (counts["read"] > 0) == (least < 0)
        counts.update(read=0, step=0)
    assert texts[0] == texts[1]
    assert steps[1] < steps[0]
    for one in made:  # it has seen every token, and the end of the answer
        answer = tokenizer.decode(one.tokens[one.start :], skip_special_tokens=True)
        assert answer.strip() == texts[0]


def test_guesses_stop_before_the_cache_is_full(model, tokenizer, monkeypatch):
    monkeypatch.setattr(lookup, "LEAST", -1.0)
    prompt = tokenizer("Peru is Peru is Peru is Peru is")["input_ids"]
    most = 12
    decoder = StaticDecoder(model, 1, len(prompt) + most)
    answer = AnswerText(tokenizer, (), [], most)
    tokens = answering.generate_tokens(decoder, prompt, greedy, answer)
    assert sum(1 for _ in tokens) == most
