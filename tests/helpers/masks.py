"""Odd texts, and what is trained in a conversation, for several tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.tokens import rendering
from helpers.templates import FAMILIES, TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer

QUIET = settings(
    deadline=None,
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

WORDS = ["<think>", "</think>", "assistant", "user", "[INST]", " [/INST]", "\n", "  "]
WORDS += [
    rendering.PLACEHOLDER,
    "wxzquestion",
    "USER: ",
    "ASSISTANT:",
    "<|assistant|>\n",
    "model\n",
    "Hi?",
    "é",
    "🦙",
    "a.b",
]
ODD = st.lists(st.sampled_from(WORDS), max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁<|>"),
    max_size=12,
)

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


def spans(tokens: data.Tokens) -> list[list[int]]:
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


def decoded(tokens: data.Tokens, tokenizer) -> list[str]:
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
