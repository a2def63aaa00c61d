from __future__ import annotations

import pytest

from colab_utils import generation
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.generation.prompts import prompt_tokens

CONVERSATION = [
    {"role": "user", "content": "What is the capital of Peru?"},
    {"role": "assistant", "content": "Lima"},
    {"role": "user", "content": "And its currency?"},
]

TOOL = {"role": "tool", "content": "42"}

INVALID_PROMPTS = {
    "tool turn last": ([[*CONVERSATION, TOOL]], "must end with a user turn"),
    "tool turn first": (
        [[TOOL, CONVERSATION[0]]],
        "rejects these messages.* alternate",
    ),
    "two user turns": (
        [CONVERSATION[:1] * 2],
        "rejects these messages.* alternate",
    ),
    "assistant turn first": (
        [CONVERSATION[1:]],
        "rejects these messages.* alternate",
    ),
    "a text instead of a list": ("Why?", "put this one into a list"),
    "a conversation instead of a list": (CONVERSATION, "put this one into a list"),
    "no text": ([None], "neither a text nor a conversation"),
    "no content": ([[{"role": "user"}]], "neither a text nor a conversation"),
    "no turns": ([[]], "must end with a user turn"),
    "assistant turn last": ([CONVERSATION[:2]], "must end with a user turn"),
}


@pytest.mark.parametrize(
    ("prompts", "message"), INVALID_PROMPTS.values(), ids=INVALID_PROMPTS
)
def test_answers_of_an_invalid_prompt(model, tokenizer, prompts, message):
    with pytest.raises(ValueError, match=message):
        generation.answers(model, tokenizer, prompts, 4)


def test_answers_with_two_system_prompts(model, tokenizer):
    chat = generation.as_messages("Why?", "Be brief.")
    with pytest.raises(ValueError, match="two system prompts"):
        generation.answers(model, tokenizer, [chat], 4, system="Be long.")


def test_as_messages_with_a_system_prompt():
    assert generation.as_messages("Hi", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert generation.as_messages("Hi") == [{"role": "user", "content": "Hi"}]
    assert generation.as_messages(CONVERSATION) == CONVERSATION


def long_chat(turns: int) -> list[dict[str, str]]:
    chat = []
    for i in range(turns):
        chat.append({"role": "user", "content": f"Question {i}? " + "word " * 40})
        chat.append({"role": "assistant", "content": f"Answer {i}."})
    return [*chat, {"role": "user", "content": "The last question?"}]


def test_prompt_tokens_keep_half_of_the_context(model, tokenizer, capsys):
    ids = prompt_tokens(Conversations(tokenizer), long_chat(3), 5000, 1024)
    assert "Question 0?" in tokenizer.decode(ids)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_prompt_tokens_drop_the_oldest_turns(model, tokenizer, capsys):
    chat = generation.as_messages(long_chat(40), "Be brief.")
    ids = prompt_tokens(Conversations(tokenizer), chat, 100, 1024)
    text = tokenizer.decode(ids)
    assert len(ids) + 100 <= 1024 < len(ids) + 100 + 80
    assert "Be brief." in text and "The last question?" in text
    assert "Question 0?" not in text and "Answer 39." in text
    printed = capsys.readouterr().out
    assert "of 81 turns are left out" in printed and "1,024" in printed
    (answer,) = generation.answers(model, tokenizer, [chat], 8)
    assert answer == "".join(generation.stream(model, tokenizer, chat, 8))


def test_answers_of_a_prompt_longer_than_the_context(model, tokenizer):
    with pytest.raises(ValueError, match=r"has .* tokens, but .* 1,024: shorten"):
        generation.answers(model, tokenizer, ["word " * 2000], 8)


@pytest.mark.slow
def test_answers_end_at_the_context_length(model, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_token", "never")
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    prompt = "word " * 470  # two tokens each
    ids = prompt_tokens(
        Conversations(tokenizer), generation.as_messages(prompt), 1, 1024
    )
    space = 1024 - len(ids)
    pieces = list(generation.stream(model, tokenizer, prompt, 5000))
    assert len(pieces) == space  # one piece per token
    (answer,) = generation.answers(model, tokenizer, [prompt], 5000)
    assert answer == "".join(pieces)
