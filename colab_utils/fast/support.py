"""Check which models the fast path supports; return the reason for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from colab_utils import families
from colab_utils.fast import lora
from colab_utils.fast.sharding import Shards
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Types of rotary embeddings whose angles don't depend on the length of the text.
ROPES = ("default", "linear", "llama3")
TRAINED_ROWS = "model.embed_tokens.token_adapter.trainable_tokens_delta."


def training_problem(model: torch.nn.Module) -> str | None:
    """Return why the fast path can't train this model, or None if it can."""
    inner = lora.find_llama(model)
    if inner is None:
        return _unknown(model)
    if is_prompt(model):
        return "the adapter is a prompt, not a LoRA"
    if inner.config.hidden_act != "silu" or inner.config.attention_dropout:
        return "the activation is not silu, or the attention has dropout"
    named = [(n, p) for n, p in inner.named_parameters() if ".layers." not in n]
    outside = [p for name, p in named if not name.startswith(TRAINED_ROWS)]
    norms = [p for name, p in inner.named_parameters() if "norm" in name]
    if any(p.requires_grad for p in outside + norms):
        return "the embeddings, norms or head are trained"
    if type(inner.lm_head) is not torch.nn.Linear or not _standard_norms(inner):
        return "the norms or the head have an adapter, or are of another kind"
    if any(m._forward_hooks or m._forward_pre_hooks for m in inner.model.layers):
        return "the layers have hooks, which would not be called"
    return _partly_rotated(inner) or linears_problem(inner)


def linears_problem(inner: LlamaForCausalLM, training: bool = True) -> str | None:
    """Return why the linear layers can't be computed as their adapters are now."""
    check = _training_problem if training else _decoding_problem
    for module in lora.decoder_layers(inner):
        found = lora.linears(module, lora.LINEARS)
        for name, linear in zip(lora.LINEARS, found, strict=True):
            problem = _base_problem(linear, training)
            if not problem and lora.base_of(linear) is not linear:
                problem = check(cast("lora.LoraLinear", linear))
            if problem:
                return f"{name} {problem}"
    return None


def decoding_problem(model: torch.nn.Module) -> str | None:
    """Return why a static cache can't decode this model, or None if it can."""
    inner = lora.find_llama(model)
    if inner is None:
        return _unknown(model)
    if Shards.of(inner):
        return "its weights are sharded over several processes"
    shape = Shape.from_config(inner.config)
    if shape.activation != "silu" or shape.rope not in ROPES:
        return f"the activation is {shape.activation}, the RoPE type is {shape.rope}"
    if len({p.device for p in inner.model.parameters()}) > 1:
        return "the model is spread over several devices"
    if not _standard_norms(inner):
        return "the norms have an adapter, or are of another kind"
    return _partly_rotated(inner) or linears_problem(inner, training=False)


def _unknown(model: torch.nn.Module) -> str:
    """Return the reason for a model of another family."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    return f"the fast path knows {', '.join(families.FAMILIES)}, not {kind}"


def _partly_rotated(inner: LlamaForCausalLM) -> str | None:
    """Return the problem of a rotary embedding for a part of each head only."""
    size = Shape.from_config(inner.config).head_dim
    found = 2 * inner.model.rotary_emb.inv_freq.numel()
    return None if found == size else f"{found} of {size} numbers of a head are rotated"


def is_prompt(model: torch.nn.Module) -> bool:
    """Return whether the active adapter is a prompt or a prefix, outside all layers."""
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "is_prompt_learning", False)


def _standard_norms(inner: LlamaForCausalLM) -> bool:
    """Return whether all norms are the family's own, without an adapter."""
    name = families.family_of(inner) or ""
    kind = f"{families.FAMILIES[name].prefix}RMSNorm"
    own = getattr(families.modeling(name), kind)
    return all(type(norm) is own for norm in lora.norms(inner))


def _base_problem(linear: torch.nn.Module, training: bool) -> str | None:
    """Return the problem of a linear layer that does not depend on its adapters."""
    base = lora.base_of(linear)
    if not isinstance(base, torch.nn.Linear):
        return f"is a {type(base).__name__}"
    weight = base.weight
    if not (weight.is_floating_point() or hasattr(weight, "quant_state")):
        return f"holds its weight as {weight.dtype}"
    if base is not linear and not isinstance(
        getattr(linear, "lora_A", None), torch.nn.ModuleDict
    ):
        return "has another kind of adapter than LoRA"
    if training and weight.requires_grad:
        return "is trained as a whole"
    if training and base.bias is not None and base.bias.requires_grad:
        return "has a bias that is trained"
    return None


def _training_problem(linear: lora.LoraLinear) -> str | None:
    """Return why a layer's adapters can't be trained."""
    if linear.disable_adapters:
        return None
    if linear.merged:
        return "has its adapter merged"
    if len(linear.active_adapters) != 1:
        return "does not have exactly one active adapter"
    (name,) = linear.active_adapters
    if name not in linear.lora_A:
        return None
    if type(linear.lora_dropout[name]) is not torch.nn.Identity:
        return "has LoRA dropout"
    if linear.lora_variant.get(name) is not None or linear.lora_bias[name]:
        return "has another kind of LoRA (DoRA, a bias, ...)"
    return None


def _decoding_problem(linear: lora.LoraLinear) -> str | None:
    """Return why a layer's adapters can't be computed while decoding."""
    if linear.disable_adapters or linear.merged:
        return None
    active = [name for name in linear.active_adapters if name in linear.lora_A]
    if len(active) > 1:
        return "has more than one adapter"
    if any(linear.lora_variant.get(n) or linear.lora_bias.get(n) for n in active):
        return "has another kind of LoRA (DoRA, a bias, ...)"
    return None
