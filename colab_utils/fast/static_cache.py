"""Decode a Llama on a static cache: keys and values in memory of a fixed size.

On a GPU the step that computes a token is recorded once, as a CUDA graph, and replayed:
a step of Llama 2 7B has 450 kernels, and launching them one by one takes longer than
running them.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from colab_utils.fast import attention, lora, ops
from colab_utils.fast.decoding_linears import READ, DecodingGroup
from colab_utils.fast.linears import stay_dequantized
from colab_utils.fast.recording import Recorded
from colab_utils.memory import costs
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

# A function from a layer's number and its queries, keys and values to its attention.
Attend = Callable[[int, list[torch.Tensor]], torch.Tensor]


class StaticDecoder:
    """A Llama with keys and values in memory of a fixed size, a CUDA graph on a GPU.

    `start` takes prompts, `add` more prompts into free rows, `step` one more token for
    each, and `keep` frees rows. All but the last return the logits (rows, vocabulary)
    of the next token. In a single row, `read` takes several tokens, and `accept` says
    how many of them stay. Prompts are computed one after another, without padding, and
    equal ones once. A row takes size x 2 x layers x kv_heads x head_dim numbers.
    """

    def __init__(self, model: torch.nn.Module, rows: int, size: int) -> None:
        inner = lora.llama(model)
        self._inner = weakref.ref(inner)  # the model may hold this decoder
        self.shape = shape = Shape.from_config(inner.config)
        like = inner.model.norm.weight
        self.rows, self.size, self.device = rows, size, like.device
        # A multiple of 16 tokens: for other sizes Triton compiles its kernels again.
        capacity = -(-size // 16) * 16
        cache = (shape.layers, rows, capacity, shape.kv_heads, shape.head_dim)
        self.keys, self.values = (like.new_zeros(cache) for _ in "kv")
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        # 1 for a row in use. A recorded step also computes the others: at place 0.
        self.used = torch.zeros_like(self.lengths)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.several = torch.zeros(READ, dtype=torch.long, device=self.device)
        self.steps = torch.arange(READ, dtype=torch.int32, device=self.device)
        place = torch.arange(capacity, device=self.device)[None]
        self.cos, self.sin = (t[0] for t in inner.model.rotary_emb(like, place))
        # A NoPE layer rotates by an angle of 0.
        self.straight = torch.ones_like(self.cos), torch.zeros_like(self.sin)
        whole = stay_dequantized(shape, like)
        self.groups = [
            [DecodingGroup(module, names, like, whole) for names in lora.GROUPS]
            for module in lora.decoder_layers(inner)
        ]
        self.head_norms = [lora.head_norms(one) for one in lora.decoder_layers(inner)]
        ends = inner.model.embed_tokens, inner.lm_head
        self.embeddings, self.head = map(lora.TrainedRows, ends)
        self.identity = lora.identity(inner)
        self.recorded: dict[str, Recorded] = {}
        self.sizes: list[int] = []  # the tokens in each row that is in use

    @property
    def inner(self) -> LlamaForCausalLM:
        """The Llama. Raises ReferenceError if it was deleted."""
        inner = self._inner()
        if inner is None:
            raise ReferenceError(
                "The model of this decoder was deleted: keep a reference to it."
            )
        return inner

    def fits(self, model: torch.nn.Module, size: int) -> bool:
        """Return whether this decodes `model`, as it is now, with a cache of `size`."""
        return self.size == size and self.identity == lora.identity(lora.llama(model))

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read at most `rows` prompts of token ids; they replace the earlier ones."""
        self._read_adapters()
        self.sizes.clear()
        return self.add(prompts)

    @torch.inference_mode()
    def add(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read more prompts, into the rows after those in use; return their logits."""
        lengths = [len(prompt) for prompt in prompts]
        begin, end = len(self.sizes), len(self.sizes) + len(prompts)
        if max(lengths) > self.size or end > self.rows:
            raise ValueError(
                f"{end} prompts of up to {max(lengths)} tokens exceed a cache "
                f"of {self.rows} x {self.size}: shorten them, or make a larger decoder."
            )
        # Equal prompts are computed once, in the first of their rows.
        numbers = {p: i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
        which = [numbers[tuple(prompt)] for prompt in prompts]
        first = [begin + which.index(i) for i in range(len(numbers))]
        ids = torch.tensor(list(itertools.chain(*numbers)), device=self.device)
        sizes = map(len, numbers)
        ends = torch.tensor([0, *itertools.accumulate(sizes)], device=self.device)
        number = torch.repeat_interleave(
            torch.arange(len(first), device=self.device), ends.diff()
        )
        row = torch.tensor(first, device=self.device)[number]
        place = torch.arange(len(ids), device=self.device) - ends[number]
        documents = attention.Documents(ends.int(), max(lengths))
        found = self._last_norm(ids, self._attend_prompts(documents, row, place))
        for i, size in enumerate(lengths):
            self._copy(first[which[i]], begin + i, size)
        self.sizes += lengths
        self._note_sizes()
        logits = self.head.logits(found[ends[1:] - 1]).float()
        return logits if len(first) == len(prompts) else logits[which]

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> list[int]:
        """Free all rows but these; return where the rows in use have been before.

        The last rows move to places that became free: few keys and values are copied.
        """
        keep, places = set(rows), list(range(len(self.sizes)))
        for free in sorted(set(places) - keep, reverse=True):
            last = len(places) - 1
            self._copy(last, free, self.sizes[last])
            places[free], self.sizes[free] = places[last], self.sizes[last]
            del places[last], self.sizes[last]
        self._note_sizes()
        return places

    def _note_sizes(self) -> None:
        """Write the sizes for the attention; rows that are not in use have none."""
        self.lengths.zero_()
        self.used.zero_()
        count = len(self.sizes)
        self.lengths[:count] = torch.tensor(self.sizes, device=self.device)
        self.used[:count] = 1

    def _copy(self, row: int, other: int, tokens: int) -> None:
        """Copy the first keys and values of a row to another one."""
        if row != other:
            for cache in (self.keys, self.values):
                cache[:, other, :tokens] = cache[:, row, :tokens]

    def _attend_prompts(
        self, documents: attention.Documents, row: torch.Tensor, place: torch.Tensor
    ) -> Attend:
        """Return a function for attention of whole prompts, which also fills the cache.

        `row` and `place` are each token's row and position in the cache.
        """
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        cos, sin = self.cos[place], self.sin[place]
        caches, at = (self.keys, self.values), row * self.keys.shape[2] + place

        def attend(i: int, given: list[torch.Tensor]) -> torch.Tensor:
            qkv = torch.cat(given, dim=1)
            given.clear()  # frees the originals
            if pair := self.head_norms[i]:
                q, k = (norm.weight for norm in pair)
                qkv = ops.norm_heads(qkv, q, k, kv_heads, self.shape.norm_eps)
            if i not in self.shape.nope:
                ops.rotate(qkv, cos, sin, heads + kv_heads)
            out = attention.attention(qkv, heads, kv_heads, documents)[0]
            split = qkv.view(len(qkv), -1, self.shape.head_dim)[:, heads:]
            for cache, new in zip(caches, split.chunk(2, 1), strict=True):
                cache[i].flatten(0, 1).index_copy_(0, at, new)
            return out

        return attend

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add one token to each row in use; `tokens` is (rows,)."""
        if max(self.sizes) == self.size:
            raise ValueError(
                f"The cache of {self.size} tokens is full: make a larger decoder."
            )
        self.sizes = [size + 1 for size in self.sizes]
        count = len(self.sizes)
        self.tokens[:count] = tokens
        if self.device.type != "cuda":
            return self._step(count, max(self.sizes))
        return self._replay(self._step, self.rows)[:count]

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits after each of up to READ tokens that follow the only row.

        They are read at once, for little more time than one, because a step mostly
        reads weights. They do not belong to the row before `accept` is called.
        """
        if len(self.sizes) > 1:
            raise ValueError(f"`read` takes one row, but {len(self.sizes)} are in use.")
        size, count = self.sizes[0], len(tokens)
        if size + READ > self.size:
            raise ValueError(f"{READ} more tokens exceed a cache of {self.size}.")
        self.several[:count] = torch.tensor(tokens, device=self.device)
        if self.device.type != "cuda":
            return self._read(count, size + count)
        return self._replay(self._read, READ)[:count]

    @torch.inference_mode()
    def accept(self, count: int) -> None:
        """Add the first tokens of the last `read` to the row."""
        self.sizes[0] += count
        self.lengths[0] += count

    def _read_adapters(self) -> None:
        """Copy the adapters: they may have been trained since the last answer."""
        groups = itertools.chain(*self.groups)
        found = list(itertools.chain(*(group.copies() for group in groups)))
        if found:
            originals, copies, scales = map(list, zip(*found, strict=True))
            torch._foreach_copy_(copies, originals)
            torch._foreach_mul_(copies, scales)

    def _replay(self, step: Callable, rows: int) -> torch.Tensor:
        """Return the logits of a step of so many rows, which is recorded first."""
        name = step.__name__  # the method itself would keep this object alive
        if name not in self.recorded:
            whole = functools.partial(step, rows, self.keys.shape[2])
            self.recorded[name] = Recorded(whole, self.lengths)
        return self.recorded[name].replay()

    def _step(self, rows: int, size: int) -> torch.Tensor:
        """Compute one token in each of `rows` rows, over `size` tokens of the cache."""
        lengths, cache = self.lengths[:rows], (self.keys, self.values)
        keys, values = (one[:, :rows, :size] for one in cache)
        found = self._logits(self.tokens[:rows], lengths, keys, values)
        lengths += self.used[:rows]
        return found

    def _read(self, rows: int, size: int) -> torch.Tensor:
        """Compute `rows` tokens of the first row: each is a row that shares its cache.

        A token reads the keys and values up to its own.
        """
        lengths = self.lengths[:1] + self.steps[:rows]
        first = (one[:, :1, :size] for one in (self.keys, self.values))
        keys, values = (one.expand(-1, rows, -1, -1, -1) for one in first)
        return self._logits(self.several[:rows], lengths, keys, values)

    def _logits(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Add a token to each row of a cache of `lengths` tokens; return its logits."""

        def attend(i: int, given: list[torch.Tensor]) -> torch.Tensor:
            q, k, v = given
            if pair := self.head_norms[i]:
                q, k = self._norm_heads(q, pair[0]), self._norm_heads(k, pair[1])
            cos, sin = self.straight if i in self.shape.nope else (self.cos, self.sin)
            here = keys[i], values[i], lengths
            attention.rotate_and_store(q, k, v, cos, sin, *here)
            return attention.attention_step(q, *here)

        return self.head.logits(self._last_norm(tokens, attend)).float()

    def _norm_heads(self, x: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
        """Return RMSNorm of each head of x (rows, heads x D)."""
        heads = x.view(-1, self.shape.head_dim)
        return ops.norm(heads, norm.weight, self.shape.norm_eps).view_as(x)

    def _last_norm(self, ids: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Return the output of the last norm (T, width) for token ids (T,)."""
        inner, eps = self.inner, self.shape.norm_eps
        layers = lora.decoder_layers(inner)
        next_norms = [module.input_layernorm.weight for module in layers[1:]]
        next_norms.append(inner.model.norm.weight)
        x = self.embeddings.embed(ids)
        n = ops.norm(x, layers[0].input_layernorm.weight, eps)
        for i, (module, groups) in enumerate(zip(layers, self.groups, strict=True)):
            qkv, o, gate_up, down = groups
            (y,) = o(attend(i, qkv(n)))
            n = ops.add_norm(x, y, module.post_attention_layernorm.weight, eps)
            if len(n) <= costs.MLP_ROWS:
                (n,) = down(ops.swiglu(*gate_up(n)))
            else:  # in place, for a long prompt
                for part in n.split(costs.MLP_ROWS):
                    part.copy_(down(ops.swiglu(*gate_up(part)))[0])
            n = ops.add_norm(x, n, next_norms[i], eps)
        return n
