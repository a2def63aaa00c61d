from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colab_utils import generation
from colab_utils.fast import patch
from colab_utils.fast.decoder import Kept
from colab_utils.fast.static_cache import StaticDecoder

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
def fine_tuned(trained):
    """A 4-bit model with its adapter, after a few training steps."""
    return trained["qlora"][0].model


@pytest.fixture
def gelu(tokenizer):
    """A model that the static decoder does not support."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
    )
    return LlamaForCausalLM(config).eval()


def reference_answer(model, tokenizer, prompt, system: str, tokens: int) -> str:
    """Return transformers' own greedy answer to one prompt, without padding."""
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


def streamed(model, tokenizer, prompt, tokens: int, **settings) -> str:
    """Return a streamed answer as a whole."""
    return "".join(generation.stream(model, tokenizer, prompt, tokens, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_answers_equal_generate_for_any_batch_size(
    fine_tuned, tokenizer, system, batch_size
):
    expected = [reference_answer(fine_tuned, tokenizer, p, system, 12) for p in PROMPTS]
    assert len(set(expected)) > 3  # else a wrong order would pass
    found = generation.answers(
        fine_tuned, tokenizer, PROMPTS, 12, system, batch_size=batch_size
    )
    assert found == expected


def test_answers_without_prompts(model, tokenizer):
    assert generation.answers(model, tokenizer, []) == []


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_stream_equals_answers(model, tokenizer, prompt):
    pieces = list(generation.stream(model, tokenizer, prompt, 24))
    assert ["".join(pieces)] == generation.answers(model, tokenizer, [prompt], 24)


def test_stream_yields_pieces(model, tokenizer):
    assert len(list(generation.stream(model, tokenizer, PROMPTS[1], 24))) > 3


def test_stream_closed_early(model, tokenizer, monkeypatch):
    steps = []
    step = StaticDecoder.step

    def counted(self, tokens):
        steps.append(tokens)
        return step(self, tokens)

    monkeypatch.setattr(StaticDecoder, "step", counted)
    pieces = generation.stream(model, tokenizer, "Why?", 900)
    for _ in range(5):
        next(pieces)
    assert len(steps) < 40
    before = len(steps)
    pieces.close()
    assert len(steps) == before
    assert not torch.is_inference_mode_enabled()


def test_answers_disable_dropout_and_restore_it(gelu, tokenizer):
    modes = []
    gelu.train()
    hook = gelu.register_forward_pre_hook(lambda *_: modes.append(gelu.training))
    try:
        generation.answers(gelu, tokenizer, ["Why?"], 2)
        list(generation.stream(gelu, tokenizer, "Why?", 2))
        assert gelu.training
    finally:
        hook.remove()
        gelu.eval()
    assert len(modes) >= 2 and not any(modes)


def test_answers_of_an_unsupported_model(gelu, tokenizer, capsys):
    prompts = [p for p in PROMPTS if isinstance(p, str)]
    expected = [reference_answer(gelu, tokenizer, p, "", 12) for p in prompts]
    assert generation.answers(gelu, tokenizer, prompts, 12) == expected
    assert "reference decoding: the activation is gelu" in capsys.readouterr().out
    assert streamed(gelu, tokenizer, prompts[1], 12) == expected[1]
    assert not capsys.readouterr().out  # the reason is printed once for a model


@pytest.mark.slow
def test_answers_end_before_a_stop_string(model, tokenizer):
    (whole,) = generation.answers(model, tokenizer, PROMPTS[:1], 60)
    word = whole.split()[4]
    before = whole[: whole.index(word)].strip()
    assert before and word in whole
    stop = [word, "not there at all"]
    assert generation.answers(model, tokenizer, PROMPTS[:1], 60, stop=stop) == [before]
    assert streamed(model, tokenizer, PROMPTS[0], 60, stop=stop) == before


def test_answers_with_one_stop_string(model, tokenizer):
    arguments = (model, tokenizer, PROMPTS[:1], 20)
    assert generation.answers(*arguments, stop="not there") == generation.answers(
        *arguments
    )


@pytest.mark.slow
def test_stream_interleaved_with_others(fine_tuned, tokenizer):
    alone = [streamed(fine_tuned, tokenizer, p, 12) for p in PROMPTS]
    streams = [generation.stream(fine_tuned, tokenizer, p, 12) for p in PROMPTS]
    turns = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(pieces) for pieces in zip(*turns, strict=True)] == alone
    abandoned = generation.stream(fine_tuned, tokenizer, PROMPTS[0], 12)
    next(abandoned)
    assert streamed(fine_tuned, tokenizer, PROMPTS[1], 12) == alone[1]
    abandoned.close()


@pytest.mark.slow
def test_stream_in_threads(fine_tuned, tokenizer):
    def answer(prompt) -> str:
        return streamed(fine_tuned, tokenizer, prompt, 12)

    alone = [answer(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(answer, PROMPTS)) == alone


@pytest.mark.slow
def test_answers_next_to_a_long_prompt(model, tokenizer):
    long = "word " * 460
    (alone,) = generation.answers(model, tokenizer, ["Why?"], 200)
    assert generation.answers(model, tokenizer, ["Why?", long], 200)[0] == alone


@pytest.mark.parametrize("stop", [None, 5, [None], ["x", 5], {"x": 1}])
def test_answers_with_an_invalid_stop(model, tokenizer, stop):
    message = r"stop = .*, but it must be a string or a list"
    with pytest.raises(ValueError, match=message):
        generation.answers(model, tokenizer, ["Why?"], 4, stop=stop)
    with pytest.raises(ValueError, match=message):
        next(generation.stream(model, tokenizer, "Why?", 4, stop=stop))


def test_answers_of_an_iterator(model, tokenizer):
    prompts = PROMPTS[:2]
    expected = generation.answers(model, tokenizer, prompts, 8)
    assert generation.answers(model, tokenizer, iter(prompts), 8) == expected
    assert generation.answers(model, tokenizer, tuple(prompts), 8) == expected


@pytest.mark.parametrize(
    ("setting", "value", "reported"),
    [
        ("repetition_penalty", 1.2, True),
        ("no_repeat_ngram_size", 3, True),
        ("repetition_penalty", 1.0, False),
        ("repetition_penalty", None, False),
    ],
)
def test_answers_report_ignored_settings(
    model, tokenizer, monkeypatch, capsys, setting, value, reported
):
    monkeypatch.setattr(model.generation_config, setting, value)
    line = f"not applied: {setting} = {value}"
    generation.answers(model, tokenizer, ["Why?"], 2)
    assert (line in capsys.readouterr().out) == reported
    list(generation.stream(model, tokenizer, "Why?", 2))
    assert (line in capsys.readouterr().out) == reported


@pytest.mark.parametrize("bad", [0, -1, 2.5, None, "x"])
def test_answers_with_invalid_numbers(model, tokenizer, bad):
    shown = "is empty" if bad is None else f"= {bad!r}"
    with pytest.raises(ValueError, match=f"max_new_tokens {shown}, but"):
        generation.answers(model, tokenizer, ["Why?"], bad)
    with pytest.raises(ValueError, match=f"max_new_tokens {shown}, but"):
        next(generation.stream(model, tokenizer, "Why?", bad))
    with pytest.raises(ValueError, match=f"batch_size {shown}, but"):
        generation.answers(model, tokenizer, ["Why?"], 4, batch_size=bad)


@pytest.fixture
def strong_adapter(fine_tuned):
    """The fine-tuned model with an adapter that changes its answers clearly."""
    weights = [p for n, p in fine_tuned.named_parameters() if "lora_B" in n]
    before = [weight.data.clone() for weight in weights]
    for weight in weights:
        weight.data.mul_(-6)
    yield fine_tuned
    for weight, data in zip(weights, before, strict=True):
        weight.data.copy_(data)


@pytest.mark.slow
def test_stream_with_the_adapter_on_and_off(strong_adapter, tokenizer):
    prompt = PROMPTS[1]
    with strong_adapter.disable_adapter():
        base = reference_answer(strong_adapter, tokenizer, prompt, "", 12)
    expected = reference_answer(strong_adapter, tokenizer, prompt, "", 12)
    assert base != expected
    for _ in range(2):
        assert streamed(strong_adapter, tokenizer, prompt, 12) == expected
        with strong_adapter.disable_adapter():
            assert streamed(strong_adapter, tokenizer, prompt, 12) == base


@pytest.mark.slow
def test_stream_after_the_adapter_changed(strong_adapter, tokenizer):
    def answer() -> str:
        return streamed(strong_adapter, tokenizer, PROMPTS[1], 12)

    before = answer()
    for name, weight in strong_adapter.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(-1)
    expected = reference_answer(strong_adapter, tokenizer, PROMPTS[1], "", 12)
    assert answer() == expected != before


def test_stream_keeps_its_decoder_until_training(model, tokenizer):
    list(generation.stream(model, tokenizer, "Why?", 2))
    kept = vars(model)[Kept.NAME].decoder
    list(generation.stream(model, tokenizer, "Who?", 2))
    assert vars(model)[Kept.NAME].decoder is kept
    patch.remove(model)  # as at the start of training
    assert Kept.NAME not in vars(model)
