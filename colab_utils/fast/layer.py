"""A whole Llama layer with its LoRA, and its gradient by hand, as one autograd step.

Layers that share an input (q, k, v; gate, up) share a matrix product; what is added is
added in place; the backward pass makes again what is cheap to make (norms, SwiGLU) and
keeps the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from colab_utils.fast import ops

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

GROUPS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


def llama(model: PreTrainedModel) -> LlamaForCausalLM | None:
    """The Llama inside a model that may be wrapped, or None."""
    from transformers import LlamaForCausalLM

    return next((m for m in model.modules() if type(m) is LlamaForCausalLM), None)


def linears(module: torch.nn.Module, names: tuple[str, ...]) -> list[Any]:
    """The linear layers of a decoder layer with these names."""
    parts = module.self_attn, module.mlp
    return [getattr(parts[not hasattr(parts[0], name)], name) for name in names]


def has_prompt(model: PreTrainedModel) -> bool:
    """Whether the active adapter is a prompt or a prefix, which no layer knows of."""
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "is_prompt_learning", False)


def norms(inner: LlamaForCausalLM) -> list[Any]:
    """All norms of a Llama."""
    found = [inner.model.norm]
    for module in inner.model.layers:
        found += [module.input_layernorm, module.post_attention_layernorm]
    return found


def plain_norms(inner: LlamaForCausalLM) -> bool:
    """Whether all norms are Llama's own, without an adapter."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return all(type(norm) is LlamaRMSNorm for norm in norms(inner))


def base(linear: Any) -> torch.nn.Module:
    """The layer below its adapters, which may be the layer itself."""
    return getattr(linear, "base_layer", linear)


def problem(
    modules: Iterable[torch.nn.Module], check: Callable[[Any], str | None]
) -> str | None:
    """What keeps the linear layers of these decoder layers from being computed here.

    None where nothing does; `check` is asked about those that could be.
    """
    names = sum(GROUPS, ())
    for module in modules:
        for name, linear in zip(names, linears(module, names), strict=True):
            if found := _unsupported(linear) or check(linear):
                return f"{name} {found}"
    return None


def _unsupported(linear: Any) -> str | None:
    below = base(linear)
    if not isinstance(below, torch.nn.Linear):
        return f"is a {type(below).__name__}"
    if not (below.weight.is_floating_point() or hasattr(below.weight, "quant_state")):
        return f"holds its weight as {below.weight.dtype}"
    if below.bias is not None:
        return "has a bias"
    if below is linear or isinstance(
        getattr(linear, "lora_A", None), torch.nn.ModuleDict
    ):
        return None
    return "has another kind of adapter than LoRA"


def pairs(
    module: torch.nn.Module, group: tuple[str, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A (r, inputs) and B (outputs, r) of every linear in the group that has them."""
    found = []
    for linear in linears(module, group):
        name = adapter(linear)
        if name:
            found.append((linear.lora_A[name].weight, linear.lora_B[name].weight))
    return found


def adapter(linear: Any) -> str | None:
    """The adapter that a linear layer adds to its weight, if it does."""
    if not hasattr(linear, "base_layer") or linear.disable_adapters or linear.merged:
        return None
    return next(
        (name for name in linear.active_adapters if name in linear.lora_A), None
    )


class Norm(torch.autograd.Function):
    """The last RMSNorm."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return ops.norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        grad = grad.clone()
        dx = ops.norm_backward(grad, x, weight, torch.zeros_like(x), ctx.eps)
        return dx, None, None


_buffers: dict[Any, torch.Tensor] = {}


def forget() -> None:
    """Give back the memory that layers use in turn."""
    _buffers.clear()


def _buffer(shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Memory that every layer uses in turn: (shape) of a tensor that only grows."""
    size, key = shape[0] * shape[1], (like.device, like.dtype)
    if key not in _buffers or _buffers[key].numel() < size:
        _buffers[key] = like.new_empty(size)
    return _buffers[key][:size].view(shape)


class _Group:
    """Linear layers that share an input, as one: y = x W^T + (x A^T) B^T.

    W (outputs, inputs) is theirs one above the other, A (ranks, inputs) too and scaled
    by alpha / r; B (outputs, ranks) has theirs as blocks on its diagonal.
    """

    def __init__(
        self, module: torch.nn.Module, names: tuple[str, ...], like: torch.Tensor
    ) -> None:
        group = linears(module, names)
        bases = [base(one) for one in group]
        self.weights = [base.weight for base in bases]
        self.outputs = [base.out_features for base in bases]
        self.inputs, self.like = bases[0].in_features, like
        self.blocks = []  # (first output, outputs, first rank, rank, scale) of adapters
        row = rank = 0
        for linear, outputs in zip(group, self.outputs, strict=True):
            if name := adapter(linear):
                r = linear.lora_A[name].weight.shape[0]
                scale = linear.scaling[name]
                self.blocks.append((row, outputs, rank, r, scale))
                rank += r
            row += outputs
        self.rank, self.rows = rank, row

    def weight(self) -> torch.Tensor:
        """W in the compute dtype; the next group's overwrites it."""
        out, row = None, 0
        for weight, outputs in zip(self.weights, self.outputs, strict=True):
            if len(self.weights) == 1 and not hasattr(weight, "quant_state"):
                return weight
            if out is None:
                out = _buffer((self.rows, self.inputs), self.like)
            part = out[row : row + outputs]
            if hasattr(weight, "quant_state"):
                ops.dequantise(weight, part)
            else:
                part.copy_(weight)
            row += outputs
        return out

    def adapters(self, given: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the whole group in the compute dtype."""
        a = self.like.new_empty(self.rank, self.inputs)
        b = self.like.new_zeros(self.rows, self.rank)
        parts = []
        for row, rows, at, r, _ in self.blocks:
            parts += [a[at : at + r], b[row : row + rows, at : at + r]]
        torch._foreach_copy_(parts, given)
        for _, _, at, r, scale in self.blocks:
            if scale != 1:
                a[at : at + r] *= scale
        return a, b

    def forward(
        self,
        x: torch.Tensor,
        given: list[torch.Tensor],
        residual: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y (T, outputs) [+ residual], and what A makes of x (T, ranks)."""
        w = self.weight()
        y = x @ w.T if residual is None else torch.addmm(residual, x, w.T)
        if not self.rank:
            return y, None
        a, b = self.adapters(given)
        low = x @ a.T
        y.addmm_(low, b.T)
        return y, low

    def low(self, x: torch.Tensor, given: list[torch.Tensor]) -> torch.Tensor | None:
        """What A makes of x, computed again."""
        return x @ self.adapters(given)[0].T if self.rank else None

    def backward(
        self, grad: torch.Tensor, given: list[torch.Tensor], need: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gradient for x (or None) and for what A makes of x."""
        dx = grad @ self.weight() if need else None
        if not self.rank:
            return dx, None
        a, b = self.adapters(given)
        d_low = grad @ b
        if need:
            dx.addmm_(d_low, a)
        return dx, d_low

    def grad_b(
        self, grad: torch.Tensor, low: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradient for every B."""
        if not self.rank:
            return []
        d_b = _mm32(grad.T, low)
        return [d_b[i : i + n, j : j + r] for i, n, j, r, _ in self.blocks]

    def grad_a(self, d_low: torch.Tensor | None, x: torch.Tensor) -> list[torch.Tensor]:
        """Gradient for every A."""
        if not self.rank:
            return []
        d_a = _mm32(d_low.T, x)
        return [d_a[j : j + r] * scale for _, _, j, r, scale in self.blocks]


def _mm32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b, at least in float32 where the sum is kept."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


class Layer:
    """One decoder layer on one batch: the computation and its gradient by hand."""

    def __init__(
        self,
        module: torch.nn.Module,
        config: LlamaConfig,
        cos: torch.Tensor,
        sin: torch.Tensor,
        documents: ops.Documents,
        again: bool,
        offload: bool,
    ) -> None:
        self.module, self.cos, self.sin, self.documents = module, cos, sin, documents
        self.pairs = [pairs(module, group) for group in GROUPS]
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.norms = (module.input_layernorm, module.post_attention_layernorm)
        self.eps = config.rms_norm_eps
        self.again, self.offload = again, again and offload

    def given(self) -> list[torch.Tensor]:
        """The adapters' tensors, A and B in turn: autograd must see them."""
        return [tensor for group in self.pairs for pair in group for tensor in pair]

    def split(self, given: tuple[torch.Tensor, ...]) -> list[list[torch.Tensor]]:
        """The adapters' tensors by group."""
        rest = iter(given)
        return [list(itertools.islice(rest, 2 * len(group))) for group in self.pairs]

    def forward(
        self, x: torch.Tensor, given: tuple[torch.Tensor, ...], output: bool = True
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """The layer's output (or None) and what its gradient needs."""
        qkv_of, o_of, up_of, down_of = (_Group(self.module, g, x) for g in GROUPS)
        parts = self.split(given)
        n = ops.norm(x, self.norms[0].weight, self.eps)
        qkv, low1 = qkv_of.forward(n, parts[0])
        del n
        ops.rotate(qkv, self.cos, self.sin, self.heads + self.kv_heads)
        out, *extra = ops.attention(qkv, self.heads, self.kv_heads, self.documents)
        h, low2 = o_of.forward(out, parts[1], residual=x)
        n = ops.norm(h, self.norms[1].weight, self.eps)
        both, low3 = up_of.forward(n, parts[2])
        del n
        y = low4 = None
        if output:
            y, low4 = down_of.forward(
                ops.swiglu(*both.chunk(2, -1)), parts[3], residual=h
            )
        return y, [x, qkv, out, h, both, low1, low2, low3, low4, *extra]

    def backward(
        self,
        grad: torch.Tensor,
        saved: list[torch.Tensor | None],
        given: tuple[torch.Tensor, ...],
        need: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradients for the input (or None) and for every adapter tensor."""
        x, qkv, out, h, both, low1, low2, low3, low4, *extra = saved
        saved.clear()  # so that memory is given back on the way
        qkv_of, o_of, up_of, down_of = (_Group(self.module, g, x) for g in GROUPS)
        parts = self.split(given)
        d, d_low = down_of.backward(grad, parts[3])
        ops.swiglu_backward(d, both)
        low4 = down_of.low(d, parts[3]) if low4 is None else low4
        b4, a4 = down_of.grad_b(grad, low4), down_of.grad_a(d_low, d)
        del d
        d, d_low = up_of.backward(both, parts[2])
        b3 = up_of.grad_b(both, low3)
        dh = ops.norm_backward(d, h, self.norms[1].weight, grad, self.eps)
        a3 = up_of.grad_a(d_low, d)
        del both, d
        d, d_low = o_of.backward(dh, parts[1])
        b2 = o_of.grad_b(dh, low2)
        a2 = o_of.grad_a(d_low, out)
        where = (self.heads, self.kv_heads, self.documents)
        d = ops.attention_backward(d, qkv, *where, out, *extra)
        ops.rotate(d, self.cos, self.sin, self.heads + self.kv_heads, -1)
        del out, h
        dqkv, b1 = d, qkv_of.grad_b(d, low1)
        d, d_low = qkv_of.backward(dqkv, parts[0], need)
        del dqkv, qkv
        if need:
            dx = ops.norm_backward(d, x, self.norms[0].weight, dh, self.eps)
        else:
            dx, d = None, ops.norm(x, self.norms[0].weight, self.eps)
        a1 = qkv_of.grad_a(d_low, d)
        grads = [(a1, b1), (a2, b2), (a3, b3), (a4, b4)]
        return dx, [
            g for a, b in grads for pair in zip(a, b, strict=True) for g in pair
        ]


class Step(torch.autograd.Function):
    """A layer in autograd: input and adapters in, output out."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, *given: torch.Tensor
    ) -> torch.Tensor:
        y, saved = layer.forward(x, given)
        ctx.layer = layer
        if layer.again:
            saved = (x,)
            if layer.offload:
                saved = (torch.empty_like(x, device="cpu", pin_memory=x.is_cuda),)
                saved[0].copy_(x, non_blocking=True)
        ctx.save_for_backward(*given, *saved)
        ctx.count = len(given)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        given = ctx.saved_tensors[: ctx.count]
        saved = list(ctx.saved_tensors[ctx.count :])
        layer = ctx.layer
        if layer.again:
            x = saved[0].to(grad.device, non_blocking=True)
            _, saved = layer.forward(x, given, output=False)
            del x
        need = ctx.needs_input_grad[0]
        dx, grads = layer.backward(grad.contiguous(), saved, given, need)
        return dx, None, *grads
