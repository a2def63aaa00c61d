from __future__ import annotations

import pytest
import torch

from colab_utils import generation

BAD = {"do_sample": True, "temperature": -1.0}


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (BAD, "temperature"),
        ({"temperature": 0.7}, "only with do_sample=True"),
        ({"do_sample": True, "top_p": 7.0}, "top_p"),
        ({"do_sample": "no"}, "do_sample = 'no', but it must be True or False"),
        ({"do_sample": 1}, "do_sample = 1, but it must be True or False"),
        ({"do_sample": True, "temperature": 1e-38}, "must be at least 0.000001"),
        ({"repetition_penalty": 1.1}, "Sampling takes do_sample, temperature"),
    ],
)
def test_answers_with_invalid_sampling(model, tokenizer, sampling, message):
    model.train()
    try:
        with pytest.raises(ValueError, match=message):
            generation.answers(model, tokenizer, ["Why?"], 2, **sampling)
        with pytest.raises(ValueError, match=message):
            next(generation.stream(model, tokenizer, "Why?", 2, **sampling))
        assert model.training
    finally:
        model.eval()


def test_answers_with_integer_temperature_and_top_k_0(model, tokenizer):
    sampling = {"do_sample": True, "temperature": 1, "top_k": 0}
    assert generation.answers(model, tokenizer, ["Why?"], 4, **sampling)


def test_answers_sampled_with_a_seed(model, tokenizer):
    def draw(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generation.answers(
            model, tokenizer, ["Why?"] * 3, 8, do_sample=True, temperature=1.5
        )

    assert draw(0) == draw(0)
    assert len(set(draw(0) + draw(1))) > 1
