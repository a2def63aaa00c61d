from __future__ import annotations

import threading
import time

import pytest
import torch

from colab_utils import generation

PROMPTS = [
    "Why?",
    "What is the capital of France, and which language do people speak there?",
    "Name the currency of Japan.",
    [
        {"role": "user", "content": "What is the capital of Peru?"},
        {"role": "assistant", "content": "Lima"},
        {"role": "user", "content": "And its currency?"},
    ],
    "On which continent is Kenya?",
]


@pytest.fixture(scope="module")
def tuned(trained):
    """A model after a few steps of training, in 4 bits with its adapter."""
    return trained["qlora"][0].model


def one_by_one(model, tokenizer, prompt, system: str, tokens: int) -> str:
    """The reference: one prompt, no padding, transformers' own greedy search."""
    text = tokenizer.apply_chat_template(
        generation.as_messages(prompt, system),
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.eval().generate(
        input_ids=ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_batch_answers_as_each_prompt_does_alone(
    tuned, tokenizer, system, batch_size
):
    expected = [one_by_one(tuned, tokenizer, p, system, 12) for p in PROMPTS]
    assert len(set(expected)) > 3  # so that the order is seen
    found = generation.answers(
        tuned, tokenizer, PROMPTS, 12, system, batch_size=batch_size
    )
    assert found == expected


def test_no_prompts_no_answers(model, tokenizer):
    assert generation.answers(model, tokenizer, []) == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_adds_up_to_the_answer(model, tokenizer, prompt):
    pieces = list(generation.stream(model, tokenizer, prompt, 24))
    assert all(pieces)
    assert ["".join(pieces)] == generation.answers(model, tokenizer, [prompt], 24)


def test_a_stream_comes_in_pieces(model, tokenizer):
    assert len(list(generation.stream(model, tokenizer, PROMPTS[1], 24))) > 3


def test_sampling_draws_and_the_seed_decides(model, tokenizer):
    def draw(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generation.answers(
            model, tokenizer, ["Why?"] * 3, 8, do_sample=True, temperature=1.5
        )

    assert draw(0) == draw(0)
    assert len(set(draw(0) + draw(1))) > 1


BAD = {"do_sample": True, "temperature": -1.0}


def test_an_error_while_streaming_reaches_the_reader(model, tokenizer):
    failed = []

    def read() -> None:
        try:
            list(generation.stream(model, tokenizer, "Why?", 8, **BAD))
        except ValueError as error:
            failed.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=60)
    assert not reader.is_alive(), "the reader waits for ever"
    assert "temperature" in failed[0]


def test_an_error_in_a_batch_reaches_the_caller(model, tokenizer):
    with pytest.raises(ValueError, match="temperature"):
        generation.answers(model, tokenizer, ["Why?"], 8, **BAD)


def test_who_stops_reading_stops_the_model(model, tokenizer, monkeypatch):
    steps = []
    forward = model.forward

    def counted(*args, **kwargs):
        steps.append(time.monotonic())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    before = threading.active_count()
    pieces = generation.stream(model, tokenizer, "Why?", 900)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before
    assert len(steps) < 450


def test_dropout_is_off_while_answering_and_on_again_after(model, tokenizer):
    modes = []
    model.train()
    hook = model.register_forward_pre_hook(lambda *_: modes.append(model.training))
    try:
        generation.answers(model, tokenizer, ["Why?"], 2)
        list(generation.stream(model, tokenizer, "Why?", 2))
        assert model.training
    finally:
        hook.remove()
        model.eval()
    assert len(modes) == 4 and not any(modes)


def test_a_model_that_failed_is_left_in_its_mode(model, tokenizer):
    model.train()
    try:
        with pytest.raises(ValueError):
            generation.answers(model, tokenizer, ["Why?"], 2, **BAD)
        assert model.training
    finally:
        model.eval()


def test_a_system_prompt_comes_first():
    assert generation.as_messages("Hi", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert generation.as_messages("Hi") == [{"role": "user", "content": "Hi"}]
    assert generation.as_messages(PROMPTS[3]) == PROMPTS[3]
