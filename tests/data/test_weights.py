"""Answers of weight 0: the model reads them, and is not trained on them.

It is what Mistral's fine-tuning and Axolotl do with `weight` and `train`.
"""

from __future__ import annotations

import pytest
from helpers.masks import (
    ODD,
    QUIET,
    assert_trained,
    decoded,
    spans,
    turns,
    with_template,
)
from helpers.templates import FAMILIES, tagged
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data


def weighted(texts: list[str], weights: list[int]) -> list[data.Message]:
    """Return a conversation whose answers have weights."""
    answers = iter(weights)
    return [
        {**turn, "weight": next(answers)} if turn["role"] == "assistant" else turn
        for turn in turns(*texts)
    ]


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("weights", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_answer_of_weight_0_is_read_and_not_trained(name, weights, tags):
    tokenizer = with_template(name)
    if tags:
        tokenizer.chat_template = tagged(name)
    texts = ["Hi?", "Hello.", "And?", "Paris", "So?", "Bye."]
    tokens = data.trained_tokens(weighted(texts, list(weights)), tokenizer)
    all_trained = data.trained_tokens(turns(*texts), tokenizer)
    assert tokens["input_ids"] == all_trained["input_ids"]
    kept = [text for text, w in zip(texts[1::2], weights, strict=True) if w]
    assert_trained(tokens, tokenizer, name, kept)


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen3", "vicuna"])
@QUIET
@given(data=st.data())
def test_weights_of_odd_texts(name, tags, data):
    """The mask is the one without weights, less the runs of the skipped answers."""
    from colab_utils import data as package

    count = data.draw(st.integers(1, 3))
    texts = data.draw(st.lists(ODD, min_size=2 * count, max_size=2 * count))
    weights = data.draw(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3))
    tokenizer = with_template(name)
    if tags:
        tokenizer.chat_template = tagged(name)
    whole = package.trained_tokens(turns(*texts), tokenizer)
    found = package.trained_tokens(weighted(texts, weights), tokenizer)
    assert found["input_ids"] == whole["input_ids"]
    runs = spans(whole)
    assert len(runs) == count
    kept = [run for run, w in zip(runs, weights, strict=False) if w]
    assert spans(found) == kept
    assert all(
        a <= b
        for a, b in zip(found["assistant_masks"], whole["assistant_masks"], strict=True)
    )


def test_a_tag_around_the_header_of_a_skipped_answer():
    """A template may tag more than the answer; all of it belongs to its turn."""
    tokenizer = with_template("chatml")
    write = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        + write
        + "{% else %}{% generation %}"
        + write
        + "{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    chat = weighted(["Hi?", "Hello.", "And?", "Bye."], [0, 1])
    tokens = data.trained_tokens(chat, tokenizer)
    assert decoded(tokens, tokenizer) == ["<|im_start|>assistant\nBye.<|im_end|>\n"]


def test_a_tag_around_the_whole_conversation():
    tokenizer = with_template("chatml")
    tokenizer.chat_template = (
        "{% generation %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' "
        "+ m.content + '<|im_end|>' + '\\n' }}{% endfor %}{% endgeneration %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    chat = weighted(["Hi?", "Hello.", "And?", "Bye."], [0, 1])
    tokens = data.trained_tokens(chat, tokenizer)
    first, second = decoded(tokens, tokenizer)
    assert first == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert second.startswith("\n<|im_start|>user\nAnd?")
    assert second.endswith("Bye.<|im_end|>\n")


def test_tokenize_names_a_row_whose_answers_all_have_weight_0(tokenizer):
    rows = [{"messages": weighted(["Hi?", "Hello."], [0]), "line": 5}]
    with pytest.raises(ValueError, match=r"line 5: It has answers of weight 0 only"):
        data.tokenize(rows, tokenizer)


def test_other_weights_are_trained(tokenizer):
    """Only 0 and 1 have a meaning: 0.5 is trained in full."""
    chat = weighted(["Hi?", "Hello."], [0.5])
    assert data.trained_tokens(chat, tokenizer) == data.trained_tokens(
        turns("Hi?", "Hello."), tokenizer
    )
