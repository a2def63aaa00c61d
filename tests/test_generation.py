from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from colab_utils import generation
from colab_utils.fast import decoder as decoding
from colab_utils.fast import patch as kernels

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


@pytest.fixture(scope="module")
def other(tokenizer):
    """A model that only transformers can compute."""
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


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (BAD, "temperature"),
        ({"temperature": 0.7}, "only with do_sample=True"),
        ({"do_sample": True, "top_p": 7.0}, "top_p"),
        ({"do_sample": "no"}, "do_sample = 'no', but it must be True or False"),
        ({"do_sample": 1}, "do_sample = 1, but it must be True or False"),
        ({"do_sample": True, "temperature": 1e-38}, "must be over 0"),
        ({"repetition_penalty": 1.1}, "sampling knows do_sample, temperature"),
    ],
)
def test_bad_sampling_is_refused_and_the_mode_stays(model, tokenizer, sampling, said):
    model.train()
    try:
        with pytest.raises(ValueError, match=said):
            generation.answers(model, tokenizer, ["Why?"], 2, **sampling)
        with pytest.raises(ValueError, match=said):
            next(generation.stream(model, tokenizer, "Why?", 2, **sampling))
        assert model.training
    finally:
        model.eval()


def test_who_stops_reading_stops_the_model(model, tokenizer, monkeypatch):
    steps = []
    step = decoding.Static.step

    def counted(self, tokens):
        steps.append(tokens)
        return step(self, tokens)

    monkeypatch.setattr(decoding.Static, "step", counted)
    pieces = generation.stream(model, tokenizer, "Why?", 900)
    for _ in range(5):
        next(pieces)
    assert len(steps) < 40
    before = len(steps)
    pieces.close()
    assert len(steps) == before
    assert not torch.is_inference_mode_enabled()


def test_dropout_is_off_while_answering_and_on_again_after(other, tokenizer):
    modes = []
    other.train()
    hook = other.register_forward_pre_hook(lambda *_: modes.append(other.training))
    try:
        generation.answers(other, tokenizer, ["Why?"], 2)
        list(generation.stream(other, tokenizer, "Why?", 2))
        assert other.training
    finally:
        hook.remove()
        other.eval()
    assert len(modes) >= 2 and not any(modes)


def test_another_model_answers_as_transformers_would(other, tokenizer, capsys):
    prompts = [p for p in PROMPTS if isinstance(p, str)]
    expected = [one_by_one(other, tokenizer, p, "", 12) for p in prompts]
    assert generation.answers(other, tokenizer, prompts, 12) == expected
    assert "plain decoding: its activation is gelu" in capsys.readouterr().out
    assert "".join(generation.stream(other, tokenizer, prompts[1], 12)) == expected[1]


def test_a_string_ends_an_answer_and_is_not_shown(model, tokenizer):
    (whole,) = generation.answers(model, tokenizer, PROMPTS[:1], 60)
    word = whole.split()[4]
    before = whole[: whole.index(word)].strip()
    assert before and word in whole
    stop = [word, "not there at all"]
    assert generation.answers(model, tokenizer, PROMPTS[:1], 60, stop=stop) == [before]
    assert "".join(generation.stream(model, tokenizer, PROMPTS[0], 60, stop=stop)) == (
        before
    )


class Letters:
    """A tokenizer whose tokens are letters."""

    eos_token_id = None

    def decode(self, tokens, skip_special_tokens):
        return "".join(tokens)


@given(st.text("ab ", max_size=12), st.lists(st.text("ab ", max_size=4), max_size=3))
def test_what_was_shown_is_never_taken_back(model, text, stop):
    writer = generation._Writer(model, Letters(), generation._stops(stop), 100)
    shown = ""
    for letter in text:
        writer.add(letter)
        assert writer.shown().startswith(shown)
        shown = writer.shown()
    final = writer.finish()
    assert final.startswith(shown) and final.strip() == final
    assert not any(s in final for s in stop if s)
    if not any(s and s in text for s in stop):
        assert final == text.strip()


@given(st.data())
def test_any_tokens_make_a_text(model, tokenizer, data):
    """Also those that are halves of letters, or bytes that are none."""
    odd = ["<0x0A>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x4A>", "\u2581is", "a"]
    ids = tokenizer.convert_tokens_to_ids(odd)
    tokens = data.draw(st.lists(st.sampled_from(ids), max_size=12))
    writer, shown = generation._Writer(model, tokenizer, [], 100), ""
    for token in tokens:
        writer.add(token)
        assert writer.shown().startswith(shown)
        shown = writer.shown()
    assert writer.finish() == tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def tokenizers(tokenizer, make_byte_level):
    """The demo's; transformers' own, which cuts spaces otherwise; and Llama 3's."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    own = LlamaTokenizer(vocab=state["vocab"], merges=merges)
    return [tokenizer, own, make_byte_level()]


@given(st.data())
def test_a_text_is_the_same_whether_its_tokens_come_one_by_one(model, tokenizers, data):
    tokenizer = data.draw(st.sampled_from(tokenizers))
    vocabulary = range(len(tokenizer))
    words = [i for i in vocabulary if len(tokenizer.decode([i]).strip()) > 2]
    token = st.sampled_from(vocabulary) | st.sampled_from(words)
    tokens = data.draw(st.lists(token, max_size=30))
    writer = generation._Writer(model, tokenizer, [], 100)
    writer.ends = set()
    for number, token in enumerate(tokens, 1):
        writer.add(token)
        if data.draw(st.booleans()):  # not everyone asks at every token
            whole = tokenizer.decode(tokens[:number], skip_special_tokens=True)
            assert writer._text() == writer._text() == whole
    whole = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert writer.finish() == whole


def test_a_long_answer_is_not_decoded_again_and_again(model, tokenizer):
    read = []

    class Counted:
        eos_token_id = None

        def decode(self, tokens, skip_special_tokens):
            read.append(len(tokens))
            return tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    writer = generation._Writer(model, Counted(), ["not there"], 2000)
    text = "The capital of France is Paris. " * 200
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:2000]
    for token in tokens:
        writer.add(token)
        writer.shown()
    assert len(tokens) == 2000 and sum(read) < 40 * len(tokens)
    assert writer.finish() == tokenizer.decode(tokens).strip()


def test_one_string_that_stops_is_no_list_of_letters(model, tokenizer):
    asked = (model, tokenizer, PROMPTS[:1], 20)
    assert generation.answers(*asked, stop="not there") == generation.answers(*asked)


def test_streams_that_take_turns_do_not_disturb_each_other(tuned, tokenizer):
    alone = ["".join(generation.stream(tuned, tokenizer, p, 12)) for p in PROMPTS]
    streams = [generation.stream(tuned, tokenizer, p, 12) for p in PROMPTS]
    turns = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(pieces) for pieces in zip(*turns, strict=True)] == alone
    abandoned = generation.stream(tuned, tokenizer, PROMPTS[0], 12)
    next(abandoned)
    assert "".join(generation.stream(tuned, tokenizer, PROMPTS[1], 12)) == alone[1]
    abandoned.close()


def test_streams_in_threads(tuned, tokenizer):
    def said(prompt) -> str:
        return "".join(generation.stream(tuned, tokenizer, prompt, 12))

    alone = [said(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(said, PROMPTS)) == alone


def test_a_long_neighbour_does_not_shorten_an_answer(model, tokenizer):
    long = "word " * 460
    (alone,) = generation.answers(model, tokenizer, ["Why?"], 200)
    assert generation.answers(model, tokenizer, ["Why?", long], 200)[0] == alone


@pytest.mark.parametrize("stop", [None, 5, [None], ["x", 5], {"x": 1}])
def test_what_is_no_string_to_stop_at_is_explained(model, tokenizer, stop):
    with pytest.raises(ValueError, match=r"stop = .*, but it must be a text or a list"):
        generation.answers(model, tokenizer, ["Why?"], 4, stop=stop)
    with pytest.raises(ValueError, match=r"stop = .*, but it must be a text or a list"):
        next(generation.stream(model, tokenizer, "Why?", 4, stop=stop))


def test_prompts_may_come_from_anything_that_can_be_read_once(model, tokenizer):
    prompts = PROMPTS[:2]
    expected = generation.answers(model, tokenizer, prompts, 8)
    assert generation.answers(model, tokenizer, iter(prompts), 8) == expected
    assert generation.answers(model, tokenizer, tuple(prompts), 8) == expected


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("repetition_penalty", 1.2, True),
        ("no_repeat_ngram_size", 3, True),
        ("repetition_penalty", 1.0, False),
        ("repetition_penalty", None, False),
    ],
)
def test_settings_of_the_model_that_are_not_applied_are_told(
    model, tokenizer, monkeypatch, capsys, setting, value, told
):
    monkeypatch.setattr(model.generation_config, setting, value)
    line = f"not applied: {setting} = {value}"
    generation.answers(model, tokenizer, ["Why?"], 2)
    assert (line in capsys.readouterr().out) == told
    list(generation.stream(model, tokenizer, "Why?", 2))
    assert (line in capsys.readouterr().out) == told


TOOL = {"role": "tool", "content": "42"}
NONSENSE = {
    "another's turn": ([[*PROMPTS[3], TOOL]], "must end with a turn of the user"),
    "nobody's turn": ([[TOOL, PROMPTS[3][0]]], "template takes no such .* alternate"),
    "two at once": ([PROMPTS[3][:1] * 2], "template takes no such turns.* alternate"),
    "answer first": ([PROMPTS[3][1:]], "template takes no such turns.* alternate"),
    "a text for a list": ("Why?", "put this one into a list"),
    "a conversation for a list": (PROMPTS[3], "put this one into a list"),
    "no text": ([None], "neither a text nor a conversation"),
    "no content": ([[{"role": "user"}]], "neither a text nor a conversation"),
    "no turns": ([[]], "must end with a turn of the user"),
    "the model's turn": ([PROMPTS[3][:2]], "must end with a turn of the user"),
}


@pytest.mark.parametrize(("prompts", "said"), NONSENSE.values(), ids=NONSENSE)
def test_what_is_no_prompt_is_explained(model, tokenizer, prompts, said):
    with pytest.raises(ValueError, match=said):
        generation.answers(model, tokenizer, prompts, 4)


def test_two_system_prompts_are_one_too_many(model, tokenizer):
    chat = generation.as_messages("Why?", "Be brief.")
    with pytest.raises(ValueError, match="two system prompts"):
        generation.answers(model, tokenizer, [chat], 4, system="Be long.")


@pytest.mark.parametrize("bad", [0, -1, 2.5, None, "8"])
def test_how_long_and_how_many_are_whole_numbers(model, tokenizer, bad):
    with pytest.raises(ValueError, match=f"max_new_tokens = {bad!r}, but"):
        generation.answers(model, tokenizer, ["Why?"], bad)
    with pytest.raises(ValueError, match=f"max_new_tokens = {bad!r}, but"):
        next(generation.stream(model, tokenizer, "Why?", bad))
    with pytest.raises(ValueError, match=f"batch_size = {bad!r}, but"):
        generation.answers(model, tokenizer, ["Why?"], 4, batch_size=bad)


def test_a_whole_temperature_and_no_top_k(model, tokenizer):
    sampling = {"do_sample": True, "temperature": 1, "top_k": 0}
    assert generation.answers(model, tokenizer, ["Why?"], 4, **sampling)


def test_a_long_answer_leaves_half_of_the_context_to_the_conversation(
    model, tokenizer, capsys
):
    ids = generation._fit(tokenizer, long_chat(3), 5000, 1024)
    assert "Question 0?" in tokenizer.decode(ids)
    assert not capsys.readouterr().out


def long_chat(turns: int) -> list[dict[str, str]]:
    chat = []
    for i in range(turns):
        chat.append({"role": "user", "content": f"Question {i}? " + "word " * 40})
        chat.append({"role": "assistant", "content": f"Answer {i}."})
    return [*chat, {"role": "user", "content": "The last question?"}]


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(
    model, tokenizer, capsys
):
    chat = generation.as_messages(long_chat(40), "Be brief.")
    ids = generation._fit(tokenizer, chat, 100, 1024)
    text = tokenizer.decode(ids)
    assert len(ids) + 100 <= 1024 < len(ids) + 100 + 80
    assert "Be brief." in text and "The last question?" in text
    assert "Question 0?" not in text and "Answer 39." in text
    said = capsys.readouterr().out
    assert "of 81 turns are left out" in said and "1,024" in said
    (answer,) = generation.answers(model, tokenizer, [chat], 8)
    assert answer == "".join(generation.stream(model, tokenizer, chat, 8))


def test_a_prompt_longer_than_the_context_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"has .* tokens, and .* 1,024: shorten"):
        generation.answers(model, tokenizer, ["word " * 2000], 8)


def test_an_answer_ends_where_the_context_does(model, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_token", "never")
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    prompt = "word " * 300
    room = 1024 - len(
        generation._fit(tokenizer, generation.as_messages(prompt), 1, 1024)
    )
    pieces = list(generation.stream(model, tokenizer, prompt, 5000))
    assert len(pieces) == room  # one a token
    (answer,) = generation.answers(model, tokenizer, [prompt], 5000)
    assert answer == "".join(pieces)


@pytest.fixture
def loud(tuned):
    """The tuned model with an adapter that can't be overheard."""
    weights = [p for n, p in tuned.named_parameters() if "lora_B" in n]
    before = [weight.data.clone() for weight in weights]
    for weight in weights:
        weight.data.mul_(-6)
    yield tuned
    for weight, data in zip(weights, before, strict=True):
        weight.data.copy_(data)


def test_base_and_tuned_take_turns(loud, tokenizer):
    prompt = PROMPTS[1]
    with loud.disable_adapter():
        base = one_by_one(loud, tokenizer, prompt, "", 12)
    expected = one_by_one(loud, tokenizer, prompt, "", 12)
    assert base != expected
    for _ in range(2):
        assert "".join(generation.stream(loud, tokenizer, prompt, 12)) == expected
        with loud.disable_adapter():
            assert "".join(generation.stream(loud, tokenizer, prompt, 12)) == base


def test_an_adapter_that_was_trained_meanwhile_is_read_again(loud, tokenizer):
    def said() -> str:
        return "".join(generation.stream(loud, tokenizer, PROMPTS[1], 12))

    before = said()
    for name, weight in loud.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(-1)
    assert said() == one_by_one(loud, tokenizer, PROMPTS[1], "", 12) != before


def test_the_memory_of_a_stream_is_kept_and_given_back(model, tokenizer):
    list(generation.stream(model, tokenizer, "Why?", 2))
    kept = decoding._last[model]
    list(generation.stream(model, tokenizer, "Who?", 2))
    assert decoding._last[model] is kept
    kernels.remove(model)  # as training begins
    assert model not in decoding._last


def test_a_system_prompt_comes_first():
    assert generation.as_messages("Hi", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert generation.as_messages("Hi") == [{"role": "user", "content": "Hi"}]
    assert generation.as_messages(PROMPTS[3]) == PROMPTS[3]
