"""Configs that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import AutoConfig, LlamaConfig


@pytest.fixture(scope="session")
def seven_b() -> Callable[..., LlamaConfig]:
    """Build the config of Llama 2 7B, with changes."""

    def build(**changes) -> LlamaConfig:
        usual = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
        return AutoConfig.for_model("llama", **usual | changes)

    return build
