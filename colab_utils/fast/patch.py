"""Switch a model to the fast path of training, and back.

`apply` replaces the forward pass of training, `remove` restores transformers' own. The
adapters stay PEFT's. The fast path saves time in four ways. Documents stand one after
another, without padding or masks. Layers that share an input share a matrix product. An
NF4 weight is dequantized in one kernel, and element-wise work is fused. Only as many
layers use gradient checkpointing as the memory demands.
"""

from __future__ import annotations

import functools
import math
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from colab_utils.fast import decoder, lora, ops, support
from colab_utils.fast.autograd import LayerFunction
from colab_utils.fast.documents import Tokens, flatten, share
from colab_utils.fast.layer import Batch, Layer
from colab_utils.fast.linears import Scratch, stay_dequantized
from colab_utils.fast.loss import NormedCrossEntropy
from colab_utils.fast.sharding import Shards
from colab_utils.fast.tiled_layer import TiledLayer
from colab_utils.memory.costs import LOGIT_ROWS
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# The inputs that the fast path accepts, in addition to ids and labels. The lengths of
# newer collators (cu_seq_lens, max_length) repeat the information of position_ids.
KNOWN_INPUTS = {"attention_mask", "position_ids", "num_items_in_batch", "shared"}
KNOWN_INPUTS |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
# Inputs that TRL adds for Liger's kernels, which return no logits. transformers' own
# forward pass does not accept them.
LIGER_INPUTS = {"skip_logits", "return_token_accuracy", "use_token_scaling"}


@dataclass
class Output(CausalLMOutputWithPast):
    """The loss, its parts, and the share of correct predictions, which trainers log.

    `token_losses` (T,) has the loss of each label of the batch, row after row without
    padding, at the place of the token before it; 0 where no label is.
    """

    token_accuracy: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None


@dataclass
class FastPath:
    """The settings of `apply` and the memory that the layers share.

    The object is stored as the attribute `_fast_path` of the LlamaForCausalLM.
    """

    recompute: int
    offload: int
    tiles: int
    disk: int
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def settings(self) -> tuple[int, int, int, int]:
        """The arguments of `apply` after the model."""
        return self.recompute, self.offload, self.tiles, self.disk

    @staticmethod
    def of(inner: LlamaForCausalLM) -> FastPath | None:
        """Return the fast path of a model, or None before `apply`."""
        return vars(inner).get("_fast_path")


def apply(
    model: torch.nn.Module,
    recompute: int = 0,
    offload: int = 0,
    tiles: int = 1,
    disk: int = 0,
) -> bool:
    """Train `model` on the fast path from now on.

    Returns False, and prints why, for a model that the fast path can't train. The first
    `recompute` layers use gradient checkpointing. The inputs of the first `offload` of
    them stay in RAM, those of the first `disk` on disk, and the embeddings in RAM. With
    several `tiles`, all layers are checkpointed `TiledLayer`s. `remove` undoes all of
    this.
    """
    remove(model)
    if problem := support.training_problem(model):
        print(f"reference path: {problem}")
        return False
    inner = lora.llama(model)
    if inner.device.type == "cuda" and not ops.has_triton():
        print("Triton is missing: element-wise work runs in PyTorch, which is slower")
    shape = Shape.from_config(inner.config)
    recompute = shape.layers if tiles > 1 else recompute
    keep = not Shards.of(inner) and stay_dequantized(shape, inner.model.norm.weight)
    vars(inner).update(
        _fast_path=FastPath(recompute, offload, tiles, disk, Scratch(keep=keep)),
        forward=types.MethodType(_forward, inner),
        train=types.MethodType(_train, inner),
    )
    return True


def remove(model: torch.nn.Module) -> None:
    """Undo `apply`: the model computes as transformers and PEFT do.

    This also frees the memory that the model keeps for its next answer.
    """
    inner = lora.find_llama(model)
    if inner is None:
        return
    decoder.release_decoder(inner)
    if fast := FastPath.of(inner):
        for name in ("forward", "train", "_fast_path"):
            del vars(inner)[name]
        _return_embeddings(inner)
        fast.scratch.clear()
    if shards := Shards.of(inner):
        shards.clear()


def is_fast(model: torch.nn.Module) -> bool:
    """Return whether the model's next forward pass with labels is on the fast path."""
    inner = lora.find_llama(model)
    return inner is not None and inner.training and FastPath.of(inner) is not None


def _train(self: LlamaForCausalLM, mode: bool = True) -> LlamaForCausalLM:
    """Replace `train` and `eval`: `generate` reads the device before `forward` runs."""
    if not mode:
        _return_embeddings(self)
    return type(self).train(self, mode)


def _return_embeddings(inner: LlamaForCausalLM) -> None:
    """Move the embeddings from CPU memory, where `offload` put them, to the device."""
    inner.model.embed_tokens.to(inner.lm_head.weight.device)


def _forward(
    self: LlamaForCausalLM,
    input_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """Replace `forward`: only training runs on the fast path."""
    fast = vars(self)["_fast_path"]
    if not self.training or labels is None or input_ids is None:
        if fast.offload:
            _return_embeddings(self)
        rest = {k: v for k, v in kwargs.items() if k not in LIGER_INPUTS | {"shared"}}
        return type(self).forward(self, input_ids=input_ids, labels=labels, **rest)
    _check(self, kwargs)
    mask = kwargs.get("attention_mask")
    tokens = _tokens(self, labels, mask, kwargs.get("position_ids"))
    if (shared := kwargs.get("shared")) is not None and mask is not None:
        tokens = share(tokens, mask, shared)
    x = hidden_states(self, fast, input_ids, mask, tokens)
    norm, trained = self.model.norm, (tokens.targets != -100).sum()
    losses, correct = NormedCrossEntropy.apply(
        *(x, norm.weight, norm.variance_epsilon),
        *(self.lm_head.weight, tokens.targets, LOGIT_ROWS),
    )
    count = kwargs.get("num_items_in_batch")
    count = torch.as_tensor(trained if count is None else count)
    loss = losses.sum() / count.clamp(min=1)
    if tokens.shared:
        assert tokens.order is not None
        every = losses.new_zeros(len(tokens.shared.expand))
        losses = every.index_copy(0, tokens.order, losses)
    elif tokens.order is not None:
        losses = losses[tokens.order.argsort()]
    accuracy = correct / trained.clamp(min=1)
    return Output(loss=loss, token_accuracy=accuracy, token_losses=losses)


def _tokens(
    inner: LlamaForCausalLM,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor | None = None,
) -> Tokens:
    """Return the tokens of a batch; raise ValueError beyond the sliding window."""
    tokens = flatten(labels, mask, positions)
    window, longest = Shape.from_config(inner.config).window, tokens.longest
    if window and longest > window:
        raise ValueError(
            f"A row has {longest:,} tokens, but this model's attention has a "
            f"sliding window of {window:,}, and the fast path computes none: remove "
            "longer rows, or call training.use_reference_path(trainer)."
        )
    return tokens


def _check(inner: LlamaForCausalLM, inputs: dict[str, Any]) -> None:
    """Raise TypeError for inputs or adapters that the fast path would leave out."""
    other = {k for k, v in inputs.items() if not (v is None or v is False)}
    # use_cache and return_dict=True change nothing here
    other -= KNOWN_INPUTS | LIGER_INPUTS | {"use_cache", "return_dict"}
    other |= {k for k, v in inputs.items() if k == "return_dict" and v is False}
    if other:
        raise TypeError(
            f"The fast path does not accept the input {', '.join(sorted(other))}. "
            "Train without it, or call training.use_reference_path(trainer)."
        )
    if problem := support.linears_problem(inner):
        raise TypeError(
            f"The fast path can no longer train this model: {problem}. Call "
            "training.use_reference_path(trainer)."
        )


def _largest_weight(shape: Shape) -> tuple[int, int]:
    """Return the outputs and inputs of the largest group of linear layers."""
    sizes = shape.linear_shapes()
    groups = ([sizes[name] for name in group] for group in lora.GROUPS)
    found = [(sum(outputs for _, outputs in group), group[0][0]) for group in groups]
    return max(found, key=math.prod)


def hidden_states(
    model: LlamaForCausalLM,
    fast: FastPath,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    tokens: Tokens,
) -> torch.Tensor:
    """Return the output of the last layer (T, width) for the tokens in `mask`."""
    llama, shape = model.model, Shape.from_config(model.config)
    embeddings = lora.TrainedRows(llama.embed_tokens)
    tied = embeddings.base.weight is model.lm_head.weight
    if fast.offload and not tied:
        embeddings.base.cpu()  # each time, because a trainer may move the model
    # First, because it stays: below the tensors of this step it leaves no hole.
    weight = embeddings.base.weight
    fast.scratch.take(*_largest_weight(shape), weight.dtype, ids.device)
    if shards := Shards.of(model):
        shards.allocate()
    # Embed the padded rows: a hook may add noise that depends on their shape (NEFTune).
    x = embeddings.embed(ids)
    x = x.flatten(0, 1) if mask is None else x[mask.bool()]
    x = x if tokens.order is None else x[tokens.order]
    cos, sin = (t[0] for t in llama.rotary_emb(x, tokens.positions[None]))
    batch = Batch(cos, sin, tokens.groups, tokens.shared)
    tiled = functools.partial(TiledLayer, tiles=fast.tiles)
    kind = tiled if fast.tiles > 1 else Layer
    for i, module in enumerate(lora.decoder_layers(model)):
        layer = kind(
            module,
            i,
            shape,
            batch,
            like=x,
            scratch=fast.scratch,
            checkpoint=i < fast.recompute,
            offload=i < fast.offload,
            on_disk=i < fast.disk,
            shards=shards,
        )
        x = LayerFunction.apply(x, layer, *layer.parameters())
    return x


def final_states(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    mask: torch.Tensor,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the normed output of the last layer (T, width), for a head of its own.

    `apply` must have been called. The T tokens are those in `mask`, row after row; with
    `places` only the tokens at these positions among the T.
    """
    fast = vars(model)["_fast_path"]
    _check(model, {})
    tokens = _tokens(model, ids, mask)
    x = hidden_states(model, fast, ids, mask, tokens)
    if tokens.order is not None:
        back = tokens.order.argsort()
        places = back if places is None else back[places]
    return model.model.norm(x if places is None else x[places])
