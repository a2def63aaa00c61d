"""Find the Llama in a model of PEFT's, its linear layers, and their adapters.

"Llama" stands for every family in `colab_utils.families`; their modules have the same
names. The type hints name the classes of Llama itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, cast

import torch

from colab_utils import families

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import (
        LlamaDecoderLayer,
        LlamaRMSNorm,
    )

# The linear layers of a decoder layer, grouped by the input that they share.
GROUPS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
LINEARS = tuple(name for group in GROUPS for name in group)


class LoraLinear(Protocol):
    """The attributes of PEFT's LoRA layer (a `LoraLayer`) that this package reads."""

    base_layer: torch.nn.Linear
    disable_adapters: bool
    merged: bool
    active_adapters: Sequence[str]
    lora_A: Mapping[str, torch.nn.Linear]
    lora_B: Mapping[str, torch.nn.Linear]
    lora_bias: Mapping[str, bool]
    lora_dropout: Mapping[str, torch.nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]


def find_llama(model: torch.nn.Module) -> LlamaForCausalLM | None:
    """Return the Llama in a model that PEFT may have wrapped, or None."""
    found = (module for module in model.modules() if families.family_of(module))
    return cast("LlamaForCausalLM | None", next(found, None))


def llama(model: torch.nn.Module) -> LlamaForCausalLM:
    """Return the Llama in a model; raise TypeError if there is none."""
    inner = find_llama(model)
    if inner is None:
        raise TypeError(
            f"A {type(model).__name__} contains no model that the fast path knows "
            f"({', '.join(families.FAMILIES)}): use its own `forward` and `generate`."
        )
    return inner


def decoder_layers(inner: LlamaForCausalLM) -> list[LlamaDecoderLayer]:
    """Return the decoder layers, from the first to the last."""
    return [cast("LlamaDecoderLayer", module) for module in inner.model.layers]


def norms(inner: LlamaForCausalLM) -> list[LlamaRMSNorm]:
    """Return all norms of a Llama, the last one first."""
    found = [inner.model.norm]
    for module in decoder_layers(inner):
        found += [module.input_layernorm, module.post_attention_layernorm]
        found += head_norms(module) or ()
    return found


def head_norms(module: LlamaDecoderLayer) -> tuple[LlamaRMSNorm, LlamaRMSNorm] | None:
    """Return the norms of each head of the queries and of the keys, if there are any.

    Qwen3 has them.
    """
    attention: Any = module.self_attn
    if not hasattr(attention, "q_norm"):
        return None
    return attention.q_norm, attention.k_norm


def linears(module: LlamaDecoderLayer, names: Sequence[str]) -> list[torch.nn.Module]:
    """Return the linear layers of a decoder layer with these names."""
    parts = module.self_attn, module.mlp
    return [getattr(parts[not hasattr(parts[0], name)], name) for name in names]


def is_adapted(linear: torch.nn.Module) -> TypeGuard[LoraLinear]:
    """Return whether PEFT has wrapped a linear layer that `support` accepts."""
    return hasattr(linear, "base_layer")


def base_of(linear: torch.nn.Module) -> torch.nn.Linear:
    """Return the base layer of an adapted linear layer; else the layer itself."""
    return cast("torch.nn.Linear", getattr(linear, "base_layer", linear))


def active_adapter(linear: torch.nn.Module) -> str | None:
    """Return the name of the adapter that a linear layer adds to its weight."""
    if not is_adapted(linear) or linear.disable_adapters or linear.merged:
        return None
    return next(
        (name for name in linear.active_adapters if name in linear.lora_A), None
    )


class TrainedRows:
    """Embeddings or a head, of which PEFT may train some rows.

    PEFT copies the whole table at each call and sends the ids to the GPU, which a CUDA
    graph can't record; its backward pass makes a gradient of the whole table. This
    computes the same from the table and the rows.
    """

    def __init__(self, table: torch.nn.Module) -> None:
        self.table, self.base, self.rows = table, cast("torch.nn.Linear", table), None
        adapter: Any = getattr(table, "token_adapter", None)
        if adapter is None:
            return
        self.base = adapter.base_layer
        off = adapter.merged or adapter.disable_adapters or table._forward_hooks
        if not off and len(adapter.active_adapters) == 1:
            (name,) = adapter.active_adapters
            self.rows = adapter.trainable_tokens_delta[name]
            self.ids = torch.tensor(
                adapter.token_indices[name], device=self.rows.device
            )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids, of any shape; the table may be in RAM."""
        near = ids.to(self.base.weight.device)
        if self.rows is None:
            return cast("torch.Tensor", self.table(near)).to(ids.device)
        x = self.base(near).to(ids.device)
        found = ids[..., None] == self.ids
        new = found.to(x.dtype) @ self.rows.to(x)  # each line of `found` has one 1
        return torch.where(found.any(-1, keepdim=True), new, x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (T, vocabulary) of x (T, width)."""
        if self.rows is None:
            return cast("torch.Tensor", self.table(x))
        return self.base(x).index_copy(1, self.ids, x @ self.rows.to(x).T)


class Adapter(NamedTuple):
    """A LoRA in a `LinearGroup`; looks its tensors up, because PEFT may replace them.

    `rows` are its outputs in the stacked W. `ranks` are its rows in the stacked A.
    """

    module: LoraLinear
    name: str
    linear: int  # position in the group
    rows: slice
    ranks: slice

    @property
    def a(self) -> torch.Tensor:
        """A (r, inputs)."""
        return self.module.lora_A[self.name].weight

    @property
    def b(self) -> torch.Tensor:
        """B (outputs, r)."""
        return self.module.lora_B[self.name].weight

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return self.module.scaling[self.name]


class LinearGroup:
    """Linear layers that share an input x: x W^T + bias + scale (x A^T) B^T.

    Most have no bias. The A of all layers are stacked, so that one product computes
    every x A^T. The computation has the dtype and the device of `like`. The subclasses
    are in `linears` for training and in `decoding_linears`.
    """

    def __init__(
        self, module: LlamaDecoderLayer, names: Sequence[str], like: torch.Tensor
    ) -> None:
        group = linears(module, names)
        bases = [base_of(linear) for linear in group]
        self.weights = [base.weight for base in bases]
        self.biases = [
            None if base.bias is None else base.bias.to(like.dtype) for base in bases
        ]
        self.outputs = [base.out_features for base in bases]
        self.inputs = bases[0].in_features
        self.dtype, self.device = like.dtype, like.device
        self.adapters: list[Adapter] = []
        row = rank = 0
        for i, (linear, outputs) in enumerate(zip(group, self.outputs, strict=True)):
            name = active_adapter(linear)
            if name and is_adapted(linear):
                r = linear.lora_A[name].weight.shape[0]
                rows, ranks = slice(row, row + outputs), slice(rank, rank + r)
                self.adapters.append(Adapter(linear, name, i, rows, ranks))
                rank += r
            row += outputs
        self.rank, self.rows = rank, row

    def empty(self, rows: int, columns: int) -> torch.Tensor:
        """Return uninitialized memory for a matrix of the computation."""
        return torch.empty(rows, columns, dtype=self.dtype, device=self.device)


def identity(inner: LlamaForCausalLM) -> list[Any]:
    """Return the modules, adapters and addresses of weights that a recorded step uses.

    If one of them changes, the step would compute something else. The result is
    compared before each answer, so it must be cheap: 7B has 224 linear layers.
    """
    every = [
        linear
        for module in decoder_layers(inner)
        for linear in linears(module, LINEARS)
    ]
    ends = inner.model.embed_tokens, inner.lm_head
    active, ranks = [], []
    for linear in every:
        name = active_adapter(linear)
        active.append((id(linear), name))
        if name and is_adapted(linear):
            ranks.append(linear.lora_A[name].weight.shape[0])
    # Embeddings and head compute their own adapters, which may be disabled.
    switched = [(id(one), getattr(one, "disable_adapters", None)) for one in ends]
    weights = [base_of(linear).weight for linear in every]
    weights += [norm.weight for norm in norms(inner)]
    biases = (base_of(linear).bias for linear in every)
    weights += [bias for bias in biases if bias is not None]
    weights += [weight for one in ends for weight in one.parameters()]
    return [active, switched, ranks, [weight.data_ptr() for weight in weights]]
