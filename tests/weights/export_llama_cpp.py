"""Compare exported models in a real llama.cpp with transformers: `make test-export`.

llama.cpp comes built, inside the package xllamacpp; Ollama's template is rendered by
Go's own text/template, which Ollama uses. `pytest tests` does not collect this file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.llama_cpp import (
    EDGES,
    LlamaCpp,
    assert_close,
    compare,
    pieces,
    render_in_go,
)
from hypothesis import given, settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from colab_utils import demo, weights
from colab_utils.data.tokens.chat_template import CHAT_TEMPLATE
from colab_utils.weights.gguf import KINDS

SYSTEM = {"role": "system", "content": "Answer in one word."}
TURNS = [
    {"role": "user", "content": "What is the capital of Peru?"},
    {"role": "assistant", "content": "Lima."},
    {"role": "user", "content": "Et où est\nN'Djamena?"},
    {"role": "assistant", "content": "In Chad, 日本 no."},
    {"role": "user", "content": "  spaces   inside "},
]
CHATS = [TURNS[:n] for n in (1, 3, 5)]
CHATS += [[SYSTEM, *chat] for chat in CHATS]


def folder_of(tokenizer, folder: Path) -> Path:
    """Save the demo model with a tokenizer, as a merged model is saved."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo.MODEL / name, folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_model(folder: Path, tokenizer, **changes) -> Path:
    """Save a small random Llama; its weights are large enough for clear answers."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(demo.MODEL)
    config.num_hidden_layers, config.initializer_range = 3, 0.08
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    for name, value in changes.items():
        setattr(config, name, value)
    made = AutoModelForCausalLM.from_config(config)
    for name, weight in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    made.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    return folder_of(tokenizer, tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture(scope="module")
def f16(folder) -> LlamaCpp:
    return LlamaCpp(weights.write_gguf(folder, kind="f16"))


@pytest.fixture(scope="module")
def q8_0(folder) -> LlamaCpp:
    return LlamaCpp(weights.write_gguf(folder, kind="q8_0"))


# --- tokens --------------------------------------------------------------------------


def corpus() -> list[str]:
    rows = [str(value) for row in demo.questions() for value in row.values()]
    return rows + [f"{a}{b}" for a, b in zip(rows, reversed(rows), strict=True)]


def test_demo_tokens(f16, tokenizer):
    for text in [*EDGES, *corpus()]:
        assert f16.tokenize(text) == tokenizer(text).input_ids, text
        bare = tokenizer(text, add_special_tokens=False).input_ids
        assert f16.tokenize(text, special=False) == bare, text


def test_demo_tokens_of_any_text(f16, tokenizer):
    names = [name.replace("▁", " ") for name in tokenizer.get_vocab()]

    @settings(max_examples=2000, deadline=None)
    @given(pieces(names))
    def check(text):
        assert f16.tokenize(text) == tokenizer(text).input_ids

    check()


@pytest.fixture(scope="module")
def llama_3(make_byte_level, tmp_path_factory) -> tuple[LlamaCpp, Any, Path]:
    tokenizer = make_byte_level()
    folder = tmp_path_factory.mktemp("models") / "llama_3"
    random_model(folder, tokenizer, tie_word_embeddings=True)
    return LlamaCpp(weights.write_gguf(folder)), tokenizer, folder


def test_byte_level_tokens(llama_3):
    served, tokenizer, _ = llama_3
    for text in [*EDGES, *corpus()]:
        assert served.tokenize(text) == tokenizer(text).input_ids, text


def test_byte_level_tokens_of_any_text(llama_3):
    served, tokenizer, _ = llama_3
    names = [tokenizer.decode([i]) for i in range(len(tokenizer))]

    @settings(max_examples=2000, deadline=None)
    @given(pieces(names))
    def check(text):
        assert served.tokenize(text) == tokenizer(text).input_ids

    check()


# --- answers -------------------------------------------------------------------------


def prompts_for(tokenizer) -> list[list[int]]:
    """Return questions as plain text, and in the chat template."""
    questions = [row["question"] for row in demo.questions()[:120]]
    plain = [tokenizer(question).input_ids for question in questions[:60]]
    chats = [[{"role": "user", "content": question}] for question in questions[60:]]
    return plain + [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for chat in chats
    ]


@pytest.mark.parametrize(("kind", "agree"), [("f16", 0.9), ("q8_0", 0.7)])
def test_demo_answers(folder, tokenizer, request, kind, agree):
    served = request.getfixturevalue(kind)
    found = compare(served, folder, kind, prompts_for(tokenizer), 24)
    assert found[0] >= agree
    assert_close(found, kind)


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
SHAPES = [
    {},
    {"num_key_value_heads": 2, "tie_word_embeddings": True},
    {"num_key_value_heads": 3, "head_dim": 64},
    {"num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 0.1},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    {"rope_parameters": LLAMA_3_ROPE},
    {"rope_parameters": LINEAR_ROPE},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    {"intermediate_size": 500},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_answers_of_all_shapes(tokenizer, tmp_path, changes):
    folder = random_model(tmp_path / "model", tokenizer, **changes)
    draw = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, 1024, (length,), generator=draw).tolist()
        for length in (1, 2, 30, 200, 700)
    ]
    for kind in KINDS:
        served = LlamaCpp(weights.write_gguf(folder, kind=kind))
        found = compare(served, folder, kind, prompts, 24)
        assert_close(found, kind)


def test_byte_level_answers(llama_3):
    served, tokenizer, folder = llama_3
    prompts = [tokenizer(row["question"]).input_ids for row in demo.questions()[:20]]
    found = compare(served, folder, "q8_0", prompts, 24)
    assert_close(found, "q8_0")


# --- chat templates ------------------------------------------------------------------


@pytest.mark.parametrize("chat", CHATS, ids=len)
def test_chat_template_in_llama_cpp(f16, tokenizer, chat):
    text = f16.post("/apply-template", messages=chat)["prompt"]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False)
    assert "<s>" + text == wanted  # llama.cpp adds the first one itself
    assert f16.tokenize(text) == tokenizer.apply_chat_template(chat)["input_ids"]


def test_chat_template_with_transformers_tokenizer(tokenizer, tmp_path):
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    own = LlamaTokenizer(vocab=state["vocab"], merges=merges)
    own.chat_template = CHAT_TEMPLATE
    folder = folder_of(own, tmp_path / "own")
    again = AutoTokenizer.from_pretrained(folder)
    assert again.backend_tokenizer.normalizer is None  # the demo's has one
    served = LlamaCpp(weights.write_gguf(folder))
    for chat in CHATS:
        text = served.post("/apply-template", messages=chat)["prompt"]
        wanted = again.apply_chat_template(chat)["input_ids"]
        assert served.tokenize(text) == wanted


def test_chat_template_in_ollama(folder, tokenizer, tmp_path):
    text = weights.write_modelfile(weights.write_gguf(folder)).read_text(
        encoding="utf-8"
    )
    template = text.split('TEMPLATE """')[1].split('"""')[0]
    chats = [
        [turn | {"content": turn["content"].strip()} for turn in chat] for chat in CHATS
    ]
    # Ollama sends an answer back as the model wrote it, with the spaces around it.
    spoken = [
        [
            t | {"content": f" {t['content']} "} if t["role"] == "assistant" else t
            for t in chat
        ]
        for chat in chats
    ]
    found = render_in_go(template, chats + spoken, tmp_path / "cache")
    wanted = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    assert ["<s>" + text for text in found] == wanted * 2
