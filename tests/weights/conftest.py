"""Fixtures of the tests of weights: a base, its adapter, a model of an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_adapter, make_base, make_model


@pytest.fixture(autouse=True)
def _headless(headless):
    """No progress bars, and a workspace of its own."""


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter(base, tokenizer, tmp_path_factory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter"), tokenizer)


@pytest.fixture
def older(tmp_path) -> Path:
    """A model that an earlier run has merged."""
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("older")
    (folder / "inputs.json").write_text("{}")
    return folder


@pytest.fixture
def tied(tmp_path) -> Path:
    """A base whose head is its embeddings, stored once."""
    config = {"num_hidden_layers": 1, "tie_word_embeddings": True}
    return make_base(tmp_path / "base", torch.float32, **config)


@pytest.fixture(scope="session")
def llama(tokenizer, tmp_path_factory) -> Path:
    """A small random Llama with its tokenizer, as a merged model is saved."""
    return make_model(tmp_path_factory.mktemp("models") / "small", tokenizer)
