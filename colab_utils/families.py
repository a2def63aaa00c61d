"""The model families whose decoder layers are Llama's, with small additions.

A family is transformers' `model_type`. Everything that depends on the family is in this
table: the fast path, the memory plan, the merge check and the export read it through
`Shape`. Other families train on the reference path, if at all.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

QKV = ("q_proj", "k_proj", "v_proj")


class Family(NamedTuple):
    """The additions of a family to Llama's decoder layer.

    A config may add more: biases (`attention_bias`, `mlp_bias`), a sliding window, and
    layers without a rotary embedding (NoPE); `Shape.from_config` reads those.
    """

    prefix: str  # of transformers' class names: "Llama" in LlamaForCausalLM
    biased: tuple[str, ...] = ()  # linear layers that always have a bias
    qk_norm: bool = False  # an RMSNorm of each head of the queries and the keys


FAMILIES = {
    "llama": Family("Llama"),  # Llama 1 to 3, Code Llama, TinyLlama, SmolLM 1 and 2
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2", biased=QKV),  # Qwen 1.5, 2 and 2.5
    "qwen3": Family("Qwen3", qk_norm=True),
    "smollm3": Family("SmolLM3"),
}


# Families whose activations exceed float16, by what their authors and users report.
OVERFLOWS = ("gemma3_text", "gemma3n_text", "gemma4_text")


def family_of(model: object) -> str | None:
    """Return the family of a causal language model of transformers, or None.

    The answer is None for every other class, also for a class derived from one of
    these.
    """
    kind = type(model)
    for name, family in FAMILIES.items():
        place = f"transformers.models.{name}.modeling_{name}"
        if (kind.__module__, kind.__name__) == (place, f"{family.prefix}ForCausalLM"):
            return name
    return None


def modeling(name: str) -> ModuleType:
    """Return transformers' module of a family: its layers, norms and embeddings."""
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")
