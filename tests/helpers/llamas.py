"""Small Llamas with adapters, batches for them, and their gradients."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

SHAPES = {
    "standard": {},
    "grouped heads": {"num_key_value_heads": 2},
    "tied, wide heads": {"tie_word_embeddings": True, "head_dim": 48},
}
LORAS = {
    "all linears": {"target_modules": "all-linear"},
    "queries and values": {"target_modules": ["q_proj", "v_proj"]},
    "rank patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"k_proj": 2, "up_proj": 8},
        "alpha_pattern": {"o_proj": 1},
        "use_rslora": True,
    },
    "later layers": {
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [1, 2],
    },
}


def small_llama(dtype=torch.float64, **changes):
    """Return a Llama of three layers with random weights."""
    torch.manual_seed(0)
    usual = {
        "vocab_size": 256,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    config = LlamaConfig(**usual | changes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def with_lora(model, **settings):
    """Return the model with an adapter whose B is not zero: A gets a gradient."""
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    torch.manual_seed(1)
    model = get_peft_model(model, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def padded(lengths: list[int], vocabulary: int = 256) -> dict[str, torch.Tensor]:
    """Return rows of random tokens, padded on the right; half have labels."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(3, vocabulary, (len(lengths), max(lengths)), generator=draw)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    trained = mask & (torch.rand(ids.shape, generator=draw) < 0.5)
    labels = torch.where(trained, ids, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def packed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same rows one after another, as TRL packs them."""
    mask = batch["attention_mask"].bool()
    positions = torch.arange(mask.shape[1]).expand_as(mask)[mask]
    labels = batch["labels"][mask].clone()
    labels[positions == 0] = -100
    rows = {"input_ids": batch["input_ids"][mask], "labels": labels}
    return {k: v[None] for k, v in {**rows, "position_ids": positions}.items()}


def gradients(model, batch, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss and the gradient of every adapter tensor."""
    model.zero_grad()
    loss = model(**batch, use_cache=False, **kwargs).loss
    loss.backward()
    named = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return loss.detach(), {n: p.grad.clone() for n, p in named}
