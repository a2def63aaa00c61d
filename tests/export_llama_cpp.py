"""Exported models in a real llama.cpp against transformers: `make test-export`.

llama.cpp comes built, inside the package xllamacpp; Ollama's template is rendered by
Go's own text/template, which Ollama uses. `pytest tests` does not collect this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import xllamacpp
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from colab_utils import demo, export, models, ollama

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
EDGES = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    " a",
    "a ",
    "\t\n\r\n  x",
    "<s>",
    "</s>a",
    "<unk>",
    "[INST] a [/INST]",
    "<s>[INST] <<SYS>>\nb\n<</SYS>>\n\na [/INST]",
    "▁a ▁ b",
    "<0x0A>",
    "it's WE'LL I'M",
    "12345678 1,234.5",
    "日本語の文",
    "🙂👩‍👩‍👧 é é",
    "\x00\x7f\u200b\ufeff",
    "<|begin_of_text|>hi<|eot_id|>",
    "a" * 300,
]


class LlamaCpp:
    """A model in llama.cpp's server, which runs in this process."""

    def __init__(self, file: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
        params.warmup = False
        params.cpuparams.n_threads = 2
        self.server = xllamacpp.Server(params)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        options = {"add_special": special, "parse_special": True}
        return self.post("/tokenize", content=text, **options)["tokens"]

    def complete(self, prompt: list[int], count: int) -> list[dict[str, Any]]:
        """Greedy tokens, each with the log-probabilities of the best five."""
        options = {"temperature": 0, "n_probs": 5, "cache_prompt": False}
        answer = self.post("/completion", prompt=prompt, n_predict=count, **options)
        return answer["completion_probabilities"]


def folder_of(tokenizer, folder: Path) -> Path:
    """The demo model as a merged model is saved, with this tokenizer."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo.MODEL / name, folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_model(folder: Path, tokenizer, **changes) -> Path:
    """A small Llama whose random weights are large enough for clear answers."""
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
    return LlamaCpp(export.write_gguf(folder, kind="f16"))


@pytest.fixture(scope="module")
def q8_0(folder) -> LlamaCpp:
    return LlamaCpp(export.write_gguf(folder, kind="q8_0"))


# --- tokens --------------------------------------------------------------------------


def pieces(names: list[str]) -> st.SearchStrategy[str]:
    """Text, tokens of the vocabulary put together at random, and both."""
    part = st.sampled_from(names) | st.text(max_size=6) | st.sampled_from(EDGES)
    return st.text(max_size=60) | st.lists(part, max_size=12).map("".join)


def corpus() -> list[str]:
    rows = [str(value) for row in demo.questions() for value in row.values()]
    return rows + [f"{a}{b}" for a, b in zip(rows, reversed(rows), strict=True)]


def test_the_demos_tokens(f16, tokenizer):
    for text in [*EDGES, *corpus()]:
        assert f16.tokenize(text) == tokenizer(text).input_ids, text
        bare = tokenizer(text, add_special_tokens=False).input_ids
        assert f16.tokenize(text, special=False) == bare, text


def test_the_demos_tokens_of_any_text(f16, tokenizer):
    names = [name.replace("▁", " ") for name in tokenizer.get_vocab()]

    @settings(max_examples=2000, deadline=None)
    @given(pieces(names))
    def check(text):
        assert f16.tokenize(text) == tokenizer(text).input_ids

    check()


@pytest.fixture(scope="module")
def llama_3(make_byte_level, tmp_path_factory) -> tuple[LlamaCpp, Any]:
    tokenizer = make_byte_level()
    folder = tmp_path_factory.mktemp("models") / "llama_3"
    random_model(folder, tokenizer, tie_word_embeddings=True)
    return LlamaCpp(export.write_gguf(folder)), tokenizer


def test_byte_level_tokens(llama_3):
    served, tokenizer = llama_3
    for text in [*EDGES, *corpus()]:
        assert served.tokenize(text) == tokenizer(text).input_ids, text


def test_byte_level_tokens_of_any_text(llama_3):
    served, tokenizer = llama_3
    names = [tokenizer.decode([i]) for i in range(len(tokenizer))]

    @settings(max_examples=2000, deadline=None)
    @given(pieces(names))
    def check(text):
        assert served.tokenize(text) == tokenizer(text).input_ids

    check()
