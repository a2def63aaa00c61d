"""The fast path: a whole Llama layer with its LoRA as one step of autograd.

`apply` replaces the forward pass of training, `remove` brings transformers' own back;
the adapters stay PEFT's. What makes it fast: documents stand one after another, without
padding or masks; layers that share an input share a matrix product; a 4-bit weight is
unpacked in one kernel; element-wise work is fused; and only `recompute` layers are
computed again in the backward pass, as many as memory demands.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from colab_utils.fast import decoder as decoding
from colab_utils.fast import layer as layers
from colab_utils.fast import ops
from colab_utils.memory.costs import LOGIT_ROWS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel


@dataclass
class Output(CausalLMOutputWithPast):
    """The loss and, as trainers log it, the share of right predictions."""

    token_accuracy: torch.Tensor | None = None


def why_not(model: PreTrainedModel) -> str | None:
    """Why the fast path can't train this model, or None."""
    inner = layers.llama(model)
    if inner is None:
        return "the model is no LlamaForCausalLM"
    if layers.has_prompt(model):
        return "its adapter is a prompt, no LoRA"
    if inner.config.hidden_act != "silu" or inner.config.attention_dropout:
        return "its activation is not silu, or its attention has dropout"
    outside = [p for name, p in inner.named_parameters() if ".layers." not in name]
    norms = [p for name, p in inner.named_parameters() if "norm" in name]
    if any(p.requires_grad for p in outside + norms):
        return "its embeddings, norms or head are trained"
    if type(inner.lm_head) is not torch.nn.Linear or not layers.plain_norms(inner):
        return "its norms or head are adapted, or of another kind"
    if any(m._forward_hooks or m._forward_pre_hooks for m in inner.model.layers):
        return "its layers have hooks, which would not be called"
    return layers.problem(inner.model.layers, _problem)


def _problem(linear: Any) -> str | None:
    """What keeps the fast path from computing a linear layer."""
    if layers.base(linear).weight.requires_grad:
        return "is trained as a whole"
    if layers.base(linear) is linear or linear.disable_adapters:
        return None
    if linear.merged:
        return "has its adapter merged"
    if len(linear.active_adapters) != 1:
        return "has not exactly one active adapter"
    (name,) = linear.active_adapters
    if name not in linear.lora_A:
        return None
    if type(linear.lora_dropout[name]) is not torch.nn.Identity:
        return "has LoRA dropout"
    if linear.lora_variant.get(name) is not None or linear.lora_bias[name]:
        return "has another kind of LoRA (DoRA, a bias, ...)"
    return None


def apply(model: PreTrainedModel, recompute: int = 0, offload: bool = False) -> bool:
    """Train `model` on the fast path from now on; False, and a line, if it can't be.

    The first `recompute` layers are computed again in the backward pass. With `offload`
    their inputs wait in CPU memory meanwhile, and the embeddings stay there. `remove`
    undoes it; what is trained and saved are PEFT's own adapters.
    """
    remove(model)
    if reason := why_not(model):
        print(f"plain path: {reason}")
        return False
    inner = layers.llama(model)
    if inner.device.type == "cuda" and not ops.has_triton():
        print("no Triton here: element-wise work is done in plain torch, slower")
    inner._fast = _Saving(recompute, offload)
    inner.forward = types.MethodType(_forward, inner)
    inner.train = types.MethodType(_train, inner)
    return True


def remove(model: PreTrainedModel) -> None:
    """Undo `apply`: the model computes as transformers and PEFT wrote it."""
    inner = layers.llama(model)
    if inner is None:
        return
    decoding.forget(inner)  # what answering keeps would be in the way of training
    if "_fast" in vars(inner):
        del inner.forward, inner.train, inner._fast
        _bring_embeddings_back(inner)
        layers.forget()


class _Saving(NamedTuple):
    """How the fast path saves memory: see `apply`."""

    recompute: int
    offload: bool


def _train(self: LlamaForCausalLM, mode: bool = True) -> LlamaForCausalLM:
    """`train` and `eval`; who generates asks where the model is before it is called."""
    if not mode:
        _bring_embeddings_back(self)
    return type(self).train(self, mode)


def _bring_embeddings_back(inner: LlamaForCausalLM) -> None:
    inner.model.embed_tokens.to(inner.lm_head.weight.device)


# What a forward pass may be given, beside ids and labels, to be on the fast path. The
# documents' lengths of newer collators (cu_seq_lens) say what position_ids say, too.
KNOWN = {"attention_mask", "position_ids", "num_items_in_batch"}
KNOWN |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
# What a trainer that expects no logits asks for; transformers' own path knows none.
LIGERS = {"skip_logits", "return_token_accuracy", "use_token_scaling"}


def _forward(
    self: LlamaForCausalLM,
    input_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """What `apply` puts in place of the model's forward pass."""
    if not self.training or labels is None or input_ids is None:
        if self._fast.offload:
            _bring_embeddings_back(self)
        plain = {k: v for k, v in kwargs.items() if k not in LIGERS}
        return type(self).forward(self, input_ids=input_ids, labels=labels, **plain)
    _check(self, kwargs)
    mask = kwargs.get("attention_mask")
    targets, positions, documents = flatten(labels, mask, kwargs.get("position_ids"))
    x = hidden(self, input_ids, mask, positions, documents)
    trained = (targets != -100).nonzero().squeeze(1)
    total, right = ops.CrossEntropy.apply(
        x[trained], self.lm_head.weight, targets[trained], LOGIT_ROWS
    )
    count = kwargs.get("num_items_in_batch")
    count = torch.as_tensor(len(trained) if count is None else count)
    loss = total / count.clamp(min=1)
    return Output(loss=loss, token_accuracy=right / max(len(trained), 1))


def _check(inner: LlamaForCausalLM, given: dict[str, Any]) -> None:
    """Raise TypeError for what would be left out: of the inputs, or of the adapters."""
    other = {k for k, v in given.items() if not (v is None or v is False)}
    other -= KNOWN | LIGERS | {"use_cache", "return_dict"}  # these change nothing
    other |= {k for k, v in given.items() if k == "return_dict" and v is False}
    if other:
        raise TypeError(
            f"The fast path does not know the input {', '.join(sorted(other))}. Train "
            "without it, or call kernels.remove(model) for the plain path."
        )
    if reason := layers.problem(inner.model.layers, _problem):
        raise TypeError(
            f"The fast path can't train this model any more: {reason}. Call "
            "kernels.remove(model) for the plain path."
        )


def flatten(
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, ops.Documents]:
    """Rows of a batch, padded or packed, as one row of T tokens without padding.

    Returns targets (the next token's label, -100 at a document's end) and positions,
    each (T,), and where the documents begin: at a row's first token, and wherever the
    positions begin anew. Raises ValueError for a mask that is more than padding.
    """
    whole = torch.ones_like(labels) if mask is None else mask
    if whole.shape != labels.shape:
        raise ValueError(
            f"The fast path takes an attention mask of {tuple(labels.shape)}, rows by "
            f"tokens, and this one has {tuple(whole.shape)}."
        )
    keep = whole.bool()
    first = keep.clone()
    first[:, 1:] &= ~keep[:, :-1]
    if positions is None:
        positions = keep.cumsum(-1) - 1
    begins = ((positions.expand_as(keep) == 0) | first)[keep]
    labels, positions = labels[keep], positions.expand_as(keep)[keep]
    if not len(labels):
        raise ValueError("The attention mask leaves no token to train on.")
    starts = begins.nonzero().squeeze(1)
    ends = torch.cat([starts, starts.new_tensor([len(labels)])]).int()
    rows, longest = torch.stack([first.sum(1).max(), ends.diff().max()]).tolist()
    if rows > 1:
        raise ValueError(
            "The attention mask has a hole: the fast path knows padding at a row's "
            "beginning and end. Call kernels.remove(model) for the plain path."
        )
    targets = torch.full_like(labels, -100)
    targets[:-1] = torch.where(begins[1:], -100, labels[1:])
    return targets, positions, ops.Documents(ends, longest)


def hidden(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    documents: ops.Documents,
) -> torch.Tensor:
    """The output of the last norm (T, width) for the T tokens that the mask leaves."""
    llama, saving = model.model, model._fast
    tied = llama.embed_tokens.weight is model.lm_head.weight
    if saving.offload and not tied:
        llama.embed_tokens.cpu()  # here: a trainer may have moved all of the model
    # As rows, and before padding is left out: a hook may add noise to them (NEFTune).
    x = llama.embed_tokens(ids.to(llama.embed_tokens.weight.device)).to(ids.device)
    x = x.flatten(0, 1) if mask is None else x[mask.bool()]
    cos, sin = (t[0] for t in llama.rotary_emb(x, positions[None]))
    for i, module in enumerate(llama.layers):
        layer = layers.Layer(
            module,
            model.config,
            cos,
            sin,
            documents,
            again=i < saving.recompute,
            offload=saving.offload,
        )
        x = layers.Step.apply(x, layer, *layer.given())
    return layers.Norm.apply(x, llama.norm.weight, llama.norm.variance_epsilon)
