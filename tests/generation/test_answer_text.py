from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaTokenizer

from colab_utils.generation.answer_text import AnswerText, stop_strings


class Letters:
    """A fake tokenizer whose tokens are letters."""

    def decode(self, tokens, skip_special_tokens):
        return "".join(tokens)


@given(st.text("ab ", max_size=12), st.lists(st.text("ab ", max_size=4), max_size=3))
def test_stable_text_only_grows(text, stop):
    answer = AnswerText(Letters(), (), stop_strings(stop), 100)
    shown = ""
    for letter in text:
        answer.add(letter)
        assert answer.stable_text().startswith(shown)
        shown = answer.stable_text()
    final = answer.finish()
    assert final.startswith(shown) and final.strip() == final
    assert not any(s in final for s in stop if s)
    if not any(s and s in text for s in stop):
        assert final == text.strip()


@given(st.data())
def test_stable_text_with_partial_characters(tokenizer, data):
    """The tokens include parts of characters and invalid bytes."""
    odd = ["<0x0A>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x4A>", "\u2581is", "a"]
    ids = tokenizer.convert_tokens_to_ids(odd)
    tokens = data.draw(st.lists(st.sampled_from(ids), max_size=12))
    answer, shown = AnswerText(tokenizer, (), [], 100), ""
    for token in tokens:
        answer.add(token)
        assert answer.stable_text().startswith(shown)
        shown = answer.stable_text()
    assert answer.finish() == tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def tokenizers(tokenizer, make_byte_level):
    """The demo's, transformers' own (which strips other spaces), and Llama 3's kind."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    own = LlamaTokenizer(vocab=state["vocab"], merges=merges)
    return [tokenizer, own, make_byte_level()]


@pytest.mark.slow
@given(st.data())
def test_decode_equals_decoding_all_tokens_at_once(tokenizers, data):
    tokenizer = data.draw(st.sampled_from(tokenizers))
    vocabulary = range(len(tokenizer))
    words = [i for i in vocabulary if len(tokenizer.decode([i]).strip()) > 2]
    token = st.sampled_from(vocabulary) | st.sampled_from(words)
    tokens = data.draw(st.lists(token, max_size=30))
    answer = AnswerText(tokenizer, (), [], 100)
    for number, token in enumerate(tokens, 1):
        answer.add(token)
        if data.draw(st.booleans()):  # a caller need not decode at every token
            whole = tokenizer.decode(tokens[:number], skip_special_tokens=True)
            assert answer.decode() == answer.decode() == whole
    whole = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert answer.finish() == whole


def test_decode_reads_each_token_a_few_times(tokenizer):
    read = []

    class Counted:
        def decode(self, tokens, skip_special_tokens):
            read.append(len(tokens))
            return tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    answer = AnswerText(Counted(), (), ["not there"], 2000)
    text = "The capital of France is Paris. " * 200
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:2000]
    for token in tokens:
        answer.add(token)
        answer.stable_text()
    assert len(tokens) == 2000 and sum(read) < 40 * len(tokens)
    assert answer.finish() == tokenizer.decode(tokens).strip()
