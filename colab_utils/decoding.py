"""Decode token by token: on a static cache with a CUDA graph, or as transformers does.

`Static` keeps keys and values in memory of a fixed size, so that on a GPU the step that
makes a token can be recorded once and replayed: a step of Llama 2 7B is 700 kernels,
and starting them one by one takes longer than running them. `Plain` is for every other
model.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from colab_utils import kernels, layers, memory, ops

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

ROPES = ("default", "linear", "llama3")  # angles that don't depend on the length
FEW = 64  # up to so many rows bitsandbytes' fused product beats unpacking the weight
CHUNK = 512  # tokens of a prompt that go through an MLP at a time


def why_not(model: PreTrainedModel) -> str | None:
    """Why `Static` can't decode this model, or None."""
    inner = kernels.llama(model)
    if inner is None:
        return "the model is no LlamaForCausalLM"
    config = inner.config
    rope = config.rope_parameters["rope_type"]
    if config.hidden_act != "silu" or rope not in ROPES:
        return f"its activation is {config.hidden_act}, its positions are {rope}"
    if len({p.device for p in inner.model.parameters()}) > 1:
        return "it is spread over several devices"
    for module in inner.model.layers:
        norms = module.input_layernorm, module.post_attention_layernorm
        if any(type(norm) is not LlamaRMSNorm for norm in norms):
            return "its norms are adapted, or of another kind"
    return layers.problem(inner.model.layers, _problem)


def _problem(linear: Any) -> str | None:
    """What keeps `Static` from computing a linear layer."""
    base = getattr(linear, "base_layer", linear)
    if not isinstance(base, torch.nn.Linear):
        return f"is a {type(base).__name__}"
    if base.bias is not None:
        return "has a bias"
    if base is linear or linear.disable_adapters or linear.merged:
        return None
    if not isinstance(getattr(linear, "lora_A", None), torch.nn.ModuleDict):
        return "has another kind of adapter than LoRA"
    active = [name for name in linear.active_adapters if name in linear.lora_A]
    if len(active) > 1:
        return "has more than one adapter"
    if any(linear.lora_variant.get(n) or linear.lora_bias.get(n) for n in active):
        return "has another kind of LoRA (DoRA, a bias, ...)"
    return None


def decoder(model: PreTrainedModel, rows: int, size: int) -> Static | Plain:
    """What decodes `rows` conversations of up to `size` tokens; a slow one says why.

    It has fewer rows where a GPU has no room for the keys and values of so many. Raises
    ValueError for an adapter that is a prompt, which needs more than scores.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError("The adapter is a prompt, no LoRA: use model.generate.")
    if reason := why_not(model):
        print(f"plain decoding: {reason}")
        return Plain(model, rows)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        one = memory.inference(model.config, "lora", size).activations
        rows = max(1, min(rows, int(0.6 * free / one)))
    return Static(model, rows, size)


@contextmanager
def kept(model: PreTrainedModel, size: int) -> Iterator[Static | Plain]:
    """A decoder of one row: that of the last time where the model is still the same.

    It belongs to one reader at a time; a second one meanwhile gets another.
    """
    inner = kernels.llama(model)
    last = vars(inner).pop("_decoder", None) if inner is not None else None
    if last is None or why_not(model) or not last.fits(model, size):
        del last  # before its memory is needed again
        last = decoder(model, 1, size)
    try:
        yield last
    finally:
        if isinstance(last, Static):
            inner._decoder = last


class _Linears:
    """Linear layers that share an input: x W^T + (x A^T) B^T for each.

    Their A stand one above the other, in the compute dtype and scaled by alpha / r.
    """

    def __init__(self, module: torch.nn.Module, names: tuple[str, ...], like):
        self.linears = layers.linears(module, names)
        self.weights = [getattr(one, "base_layer", one).weight for one in self.linears]
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
    """What must stay the same, or a recorded step computes something else."""
    names = sum(layers.GROUPS, ())
    linears = [one for m in inner.model.layers for one in layers.linears(m, names)]
    active = [(one, layers.adapter(one)) for one in linears]
    ranks = [one.lora_A[name].weight.shape[0] for one, name in active if name]
    places = [(p.data_ptr(), p.shape) for p in inner.parameters()]
    return [[(id(one), name) for one, name in active], ranks, places]


class Static:
    """A Llama with keys and values in memory of a fixed size, a CUDA graph on a GPU.

    `start` takes prompts, `step` one more token for each; both return the scores (rows,
    vocabulary) of the token that comes next. Prompts stand one after another, so there
    is no padding. Takes size x 2 x layers x key heads x head size numbers a row.
    """

    def __init__(self, model: PreTrainedModel, rows: int, size: int) -> None:
        inner = kernels.llama(model)
        self._inner = weakref.ref(inner)  # which may keep this decoder
        config = inner.config
        like = inner.model.norm.weight
        self.rows, self.size, self.device = rows, size, like.device
        self.heads, self.kept = config.num_attention_heads, config.num_key_value_heads
        self.width = config.head_dim or config.hidden_size // self.heads
        room = -(-size // 16) * 16  # Triton compiles anew for what 16 doesn't divide
        shape = (config.num_hidden_layers, rows, room, self.kept, self.width)
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
        return self.size == size and self.key == _key(kernels.llama(model))

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
            ops.rotate(qkv, cos, sin, self.heads + self.kept)
            out = ops.attention(qkv, self.heads, self.kept, documents)[0]
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
        kernels.prepared()
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
            ops.store(q, k, v, self.cos, self.sin, keys, values, lengths)
            return ops.attend(q, keys, values, lengths)

        found = self._layers(self.tokens[:rows], attend)
        lengths += 1
        return self.inner.lm_head(found).float()

    def _layers(self, ids: torch.Tensor, attend: Any) -> torch.Tensor:
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
            if len(n) <= CHUNK:
                (n,) = down(ops.swiglu(*up(n)))
            else:  # in place, for a long prompt
                for part in n.split(CHUNK):
                    part.copy_(down(ops.swiglu(*up(part)))[0])
            n = ops.add_norm(x, n, after[i + 1], eps)
        return n


class Plain:
    """The same for any model, as transformers computes it: a cache that grows."""

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model, self.rows = model, rows

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read prompts of token ids, padded on the left."""
        longest = max(len(prompt) for prompt in prompts)
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        self.mask = torch.tensor(mask, device=self.model.device)
        self.cache = None
        places = (self.mask.cumsum(1) - 1).clamp(min=0)
        return self._forward(torch.tensor(rows, device=self.model.device), places)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add one token (rows,) to each conversation."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return self._forward(tokens[:, None], self.mask.sum(1, keepdim=True) - 1)

    def _forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].float()
