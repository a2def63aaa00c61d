"""A Llama that decodes on keys and values in memory of a fixed size.

On a GPU the step that makes a token is recorded once, as a CUDA graph, and replayed: a
step of Llama 2 7B is 700 kernels, and starting them one by one takes longer than
running them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from colab_utils.fast import layer as layers
from colab_utils.fast import ops
from colab_utils.fast import warmup as compiling
from colab_utils.memory import costs
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

FEW = 64  # up to so many rows bitsandbytes' fused product beats unpacking the weight


class _Linears:
    """Linear layers that share an input: x W^T + (x A^T) B^T for each.

    Their A stand one above the other, in the compute dtype and scaled by alpha / r.
    """

    def __init__(
        self, module: torch.nn.Module, names: tuple[str, ...], like: torch.Tensor
    ) -> None:
        self.linears = layers.linears(module, names)
        self.weights = [layers.base(one).weight for one in self.linears]
        self.names = [layers.adapter(linear) for linear in self.linears]
        ranks = [
            one.lora_A[name].weight.shape[0] if name else 0
            for one, name in zip(self.linears, self.names, strict=True)
        ]
        self.a = like.new_empty(sum(ranks), self.linears[0].in_features)
        self.a_of = self.a.split(ranks)
        self.b_of = [
            like.new_empty(one.out_features, rank)
            for one, rank in zip(self.linears, ranks, strict=True)
        ]
        self.ranks = ranks

    def adapters(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """A tensor of an adapter, where it is kept here, and by what it is scaled."""
        for i, (linear, name) in enumerate(zip(self.linears, self.names, strict=True)):
            if name:
                yield linear.lora_A[name].weight, self.a_of[i], linear.scaling[name]
                yield linear.lora_B[name].weight, self.b_of[i], 1.0

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One output (T, outputs) for each layer."""
        found = [_product(x, weight) for weight in self.weights]
        if len(self.a):
            low = (x @ self.a.T).split(self.ranks, dim=-1)
            for y, part, b in zip(found, low, self.b_of, strict=True):
                if b.shape[1]:
                    y.addmm_(part, b.T)
        return found


def _product(x: torch.Tensor, weight: torch.nn.Parameter) -> torch.Tensor:
    """x W^T of a weight in 4 bits or not."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return x @ weight.T
    if x.is_cuda and len(x) <= FEW:
        import bitsandbytes

        return bitsandbytes.matmul_4bit(x, weight.data.t(), state)
    out = x.new_empty(state.shape)
    ops.dequantise(weight, out)
    return x @ out.T


def _key(inner: LlamaForCausalLM) -> list[Any]:
    """What must stay the same, or a recorded step computes something else.

    It is asked for before each answer, and 7B has 224 linear layers.
    """
    names = sum(layers.GROUPS, ())
    linears = [one for m in inner.model.layers for one in layers.linears(m, names)]
    ends = inner.model.embed_tokens, inner.lm_head
    active = [(one, layers.adapter(one)) for one in linears]
    ranks = [one.lora_A[name].weight.shape[0] for one, name in active if name]
    # The ends compute their adapters themselves, as they are.
    switched = [(id(one), getattr(one, "disable_adapters", None)) for one in ends]
    weights = [layers.base(one).weight for one in linears]
    weights += [norm.weight for norm in layers.norms(inner)]
    weights += [weight for one in ends for weight in one.parameters()]
    places = [weight.data_ptr() for weight in weights]
    return [[(id(one), name) for one, name in active], switched, ranks, places]


class Static:
    """A Llama with keys and values in memory of a fixed size, a CUDA graph on a GPU.

    `start` takes prompts, `step` one more token for each; both return the scores (rows,
    vocabulary) of the token that comes next. Prompts stand one after another, so there
    is no padding. Takes size x 2 x layers x key heads x head size numbers a row.
    """

    def __init__(self, model: PreTrainedModel, rows: int, size: int) -> None:
        inner = layers.llama(model)
        self._inner = weakref.ref(inner)  # which may keep this decoder
        config = inner.config
        like = inner.model.norm.weight
        self.rows, self.size, self.device = rows, size, like.device
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.width = Shape.from_config(config).head_dim
        room = -(-size // 16) * 16  # Triton compiles anew for what 16 doesn't divide
        shape = (config.num_hidden_layers, rows, room, self.kv_heads, self.width)
        self.keys, self.values = (like.new_zeros(shape) for _ in "kv")
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        place = torch.arange(room, device=self.device)[None]
        self.cos, self.sin = (t[0] for t in inner.model.rotary_emb(like, place))
        self.groups = [
            [_Linears(module, names, like.data) for names in layers.GROUPS]
            for module in inner.model.layers
        ]
        self.key = _key(inner)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.count = self.longest = 0

    @property
    def inner(self) -> LlamaForCausalLM:
        """The model, which must not be gone."""
        return self._inner()

    def fits(self, model: PreTrainedModel, size: int) -> bool:
        """Whether the model is still the one of which a step may be recorded."""
        return self.size == size and self.key == _key(layers.llama(model))

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read prompts of token ids, at most `rows`; forgets what was there before."""
        self._read()
        lengths = [len(prompt) for prompt in prompts]
        self.count, self.longest = len(prompts), max(lengths)
        if self.longest > self.size or self.count > self.rows:
            raise ValueError(
                f"{self.count} prompts of up to {self.longest} tokens for a cache of "
                f"{self.rows} x {self.size}."
            )
        ids = torch.tensor(list(itertools.chain(*prompts)), device=self.device)
        ends = torch.tensor([0, *itertools.accumulate(lengths)], device=self.device)
        documents = ops.Documents(ends.int(), self.longest)
        row = torch.repeat_interleave(
            torch.arange(len(prompts), device=self.device), ends.diff()
        )
        place = torch.arange(len(ids), device=self.device) - ends[row]
        cos, sin = self.cos[place], self.sin[place]
        caches, at = (self.keys, self.values), row * self.keys.shape[2] + place

        def attend(i: int, given: list[torch.Tensor]) -> torch.Tensor:
            qkv = torch.cat(given, dim=1)
            given.clear()  # so that they are not there twice
            ops.rotate(qkv, cos, sin, self.heads + self.kv_heads)
            out = ops.attention(qkv, self.heads, self.kv_heads, documents)[0]
            split = qkv.view(len(qkv), -1, self.width)[:, self.heads :]
            for cache, new in zip(caches, split.chunk(2, 1), strict=True):
                cache[i].flatten(0, 1).index_copy_(0, at, new)
            return out

        found = self._layers(ids, attend)
        self.lengths.zero_()
        self.lengths[: self.count] = ends.diff()
        return self.inner.lm_head(found[ends[1:] - 1]).float()

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add one token (rows,) to each conversation that was started."""
        if self.longest == self.size:
            raise ValueError(f"The cache of {self.size} tokens is full.")
        self.longest += 1
        self.tokens[: self.count] = tokens
        if self.device.type != "cuda":
            return self._step(self.count, self.longest)
        if self.graph is None:
            self._record()
        self.graph.replay()
        return self.scores[: self.count]

    def _read(self) -> None:
        """Take over what the adapters hold now: they may have been trained."""
        groups = itertools.chain(*self.groups)
        found = list(itertools.chain(*(group.adapters() for group in groups)))
        if found:
            theirs, ours, scales = map(list, zip(*found, strict=True))
            torch._foreach_copy_(ours, theirs)
            torch._foreach_mul_(ours, scales)

    def _record(self) -> None:
        """Record a step, after one that makes what is only made the first time."""
        compiling.wait()
        # on the same stream: on each more cuBLAS takes up to 32 MiB, and keeps them
        lengths = self.lengths.clone()
        self._step(self.rows, self.keys.shape[2])
        self.lengths.copy_(lengths)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.scores = self._step(self.rows, self.keys.shape[2])
        self.graph = graph  # not before: a recording that fails is none

    def _step(self, rows: int, size: int) -> torch.Tensor:
        lengths = self.lengths[:rows]

        def attend(i: int, given: list[torch.Tensor]) -> torch.Tensor:
            q, k, v = given
            keys, values = self.keys[i, :rows, :size], self.values[i, :rows, :size]
            ops.rotate_and_store(q, k, v, self.cos, self.sin, keys, values, lengths)
            return ops.attention_step(q, keys, values, lengths)

        found = self._layers(self.tokens[:rows], attend)
        lengths += 1
        return self.inner.lm_head(found).float()

    def _layers(
        self,
        ids: torch.Tensor,
        attend: Callable[[int, list[torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:
        """The output of the last norm (T, width) for token ids (T,)."""
        llama, eps = self.inner.model, self.inner.config.rms_norm_eps
        after = [module.input_layernorm.weight for module in llama.layers]
        after.append(llama.norm.weight)
        x = llama.embed_tokens(ids)
        n = ops.norm(x, after[0], eps)
        for i, (module, groups) in enumerate(
            zip(llama.layers, self.groups, strict=True)
        ):
            qkv, o, up, down = groups
            (y,) = o(attend(i, qkv(n)))
            n = ops.add_norm(x, y, module.post_attention_layernorm.weight, eps)
            if len(n) <= costs.MLP_ROWS:
                (n,) = down(ops.swiglu(*up(n)))
            else:  # in place, for a long prompt
                for part in n.split(costs.MLP_ROWS):
                    part.copy_(down(ops.swiglu(*up(part)))[0])
            n = ops.add_norm(x, n, after[i + 1], eps)
        return n
