from __future__ import annotations

import copy

import pytest
from helpers.templates import TEMPLATES, tagged
from helpers.tokenizers import make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data import masking

QUIET = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# For each template: a tokenizer of its family, and the tokens that end an answer.
FAMILIES = {
    "llama2": ("llama2", ["</s>"]),
    "llama3": ("llama3", ["<|eot_id|>"]),
    "chatml": ("smollm2", ["<|im_end|>"]),
    "qwen25": ("qwen2", ["<|im_end|>"]),
    "qwen3": ("qwen3", ["<|im_end|>"]),
    "zephyr": ("llama2", ["</s>"]),
    "mistral_v1": ("llama2", ["</s>"]),
    "mistral_v3": ("mistral_v3", ["</s>"]),
    "gemma2": ("gemma", ["<end_of_turn>"]),
    "gemma3": ("gemma", ["<end_of_turn>"]),
    "phi3": ("phi3", ["<|end|>"]),
    "vicuna": ("llama2", ["</s>"]),
}
# These render the spaces around an answer; all others remove them.
KEEP_SPACES = {"chatml", "qwen25", "qwen3", "zephyr", "mistral_v1", "phi3", "vicuna"}
# These raise an error for a system message, or leave it out.
NO_SYSTEM = {"gemma2", "mistral_v1", "mistral_v3"}


def with_template(name: str):
    """Return a tokenizer of the template's family that has the template."""
    tokenizer = make_tokenizer(FAMILIES[name][0])
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a conversation from the texts of user and assistant in turn."""
    roles = ("user", "assistant")
    found = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * (system is not None) + found


def spans(tokens: masking.Tokens) -> list[list[int]]:
    """Return the runs of trained token ids."""
    found: list[list[int]] = []
    before = 0
    for token, trained in zip(*tokens.values(), strict=True):
        if trained and not before:
            found.append([])
        if trained:
            found[-1].append(token)
        before = trained
    return found


def decoded(tokens: masking.Tokens, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in spans(tokens)]


def expected(name: str, answers: list[str]) -> list[str]:
    """Return the texts that the template's family trains on for these answers."""
    (end,) = FAMILIES[name][1]
    texts = [answer if name in KEEP_SPACES else answer.strip() for answer in answers]
    ends = [f" {end}" if name == "llama2" else end] * len(texts)
    if name == "qwen3":
        texts[-1] = texts[-1].lstrip("\n")
    return [text + end for text, end in zip(texts, ends, strict=True)]


def assert_trained(tokens, tokenizer, name: str, answers: list[str]) -> None:
    """Check that the trained tokens are the answers and their ends.

    Tokenizers of sentencepiece's kind write the space before an answer into its first
    token, and some remove it when they decode.
    """
    found = decoded(tokens, tokenizer)
    assert [text.lstrip(" ") for text in found] == [
        text.lstrip(" ") for text in expected(name, answers)
    ]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_are_the_answers_and_their_ends(name, system):
    tokenizer = with_template(name)
    answers = ["Hello.", "Paris", "Hello."]
    chat = turns(
        "Hi?", answers[0], "And?", answers[1], "Hi?", answers[2], system=system
    )
    tokens = data.trained_tokens(chat, tokenizer)
    assert_trained(tokens, tokenizer, name, answers)
    text = tokenizer.decode(tokens["input_ids"])
    assert ("Be brief." in text) == (system is not None)
    assert data.end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(
        FAMILIES[name][1]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_are_those_of_the_rendering(name):
    """The token ids are the rendered text's, with no token added or changed."""
    tokenizer = with_template(name)
    chat = turns("Hi?", "Hello.", "And?", "Bye.")
    ids = data.trained_tokens(chat, tokenizer)["input_ids"]
    assert ids == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_begin_where_the_prompt_ends(name):
    tokenizer = with_template(name)
    tokens = data.trained_tokens(turns("Hi?", "Hello."), tokenizer)
    first = tokens["assistant_masks"].index(1)
    prompt = tokenizer.apply_chat_template(
        turns("Hi?"),
        add_generation_prompt=True,
        return_dict=True,
        enable_thinking=False,
    )
    assert tokens["input_ids"][:first] == prompt["input_ids"]


WORDS = ["<think>", "</think>", "assistant", "user", "[INST]", " [/INST]", "\n", "  "]
WORDS += ["USER: ", "ASSISTANT:", "<|assistant|>\n", "model\n", "Hi?", "é", "🦙", "a.b"]
ODD = st.lists(st.sampled_from(WORDS), max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁<|>"),
    max_size=12,
)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@QUIET
@given(texts=st.lists(ODD, min_size=2, max_size=6), system=st.none() | ODD)
def test_trained_tokens_of_odd_texts(name, texts, system):
    """The mask is the one of transformers for the same template with tags."""
    texts = texts[: len(texts) // 2 * 2]
    if name == "phi3":  # its special tokens hold the spaces after them
        texts = [text.lstrip() for text in texts]
    tokenizer = with_template(name)
    chat = turns(*texts, system=system)
    tokens = data.trained_tokens(chat, tokenizer)
    if system is not None and name in NO_SYSTEM:
        chat = turns(f"{system}\n\n{texts[0]}", *texts[1:])
    reference = copy.deepcopy(tokenizer)
    reference.chat_template = tagged(name)
    wanted = reference.apply_chat_template(
        chat,
        return_dict=True,
        return_assistant_tokens_mask=True,
        enable_thinking=any("</think>" in answer for answer in texts[1::2]),
    )
    assert tokens["input_ids"] == wanted["input_ids"]
    assert tokens["assistant_masks"] == wanted["assistant_masks"]
