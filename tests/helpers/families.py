"""Small configs of every family that the fast path supports, and of some others."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# By name: transformers' model type, and what the family's real configs have.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama 3.2": (
        "llama",
        {"rope_parameters": LLAMA_3, "tie_word_embeddings": True, "head_dim": 32},
    ),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 128, "head_dim": 32}),
    "mistral v0.3": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
}
# Families that train on the reference path.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"head_dim": 24}),
    "gemma3": ("gemma3_text", {"head_dim": 24}),
    "granite": ("granite", {}),
}


def small(name: str, **changes: Any):
    """Return the config of a small model; `changes` come last."""
    kind, given = (CONFIGS | OTHERS)[name]
    usual = {
        "vocab_size": 256,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(kind, **usual | given | changes)


def small_model(name: str, dtype: torch.dtype = torch.float64, **changes: Any):
    """Return a small model with random weights; biases and norms are random, too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small(name, **changes), dtype=dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model
