"""Measure a token of Llama 2 7B's shape after a short and after a long context.

    python bench/context.py CHECKPOINT [--tiny]

Decodes 128 tokens of one row greedily, in 4 bits with an adapter, under a T4's limits:
with the cached tokens in one part, and divided over programs as `attention_step`
does. Compares the tokens of both, and counts those that `model.generate` chooses too.
CHECKPOINT is a folder; random weights are written there if it does not exist. Adds a
row for each context to bench/results/context.json. `--tiny` is a dry run on a CPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import ours
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from colab_utils.fast.static_cache import StaticDecoder

CONTEXTS, NEW = (64, 512, 1900, 3900), 128


def decode(decoder: StaticDecoder, prompt: list[int], count: int) -> list[int]:
    """Return `count` greedy tokens."""
    scores, found = decoder.start([prompt]), []
    for _ in range(count):
        found.append(scores.argmax(-1))
        scores = decoder.step(found[-1])
    return torch.cat(found).tolist()


def busy(run, *given) -> tuple[float, float]:
    """Return the GPU time of a call in ms, and that of attention on the cache."""
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        run(*given)
        torch.cuda.synchronize()
    events = prof.key_averages()
    parts = ("_attention_part", "_join_parts")
    some = [e for e in events if any(part in e.key for part in parts)]
    return tuple(
        sum(e.self_device_time_total for e in one) / 1e3 for one in (events, some)
    )


def measure(model, prompt: list[int], parts: int | None) -> tuple[dict, list[int]]:
    """Return the speed with `parts`, or with as many as are usual, and the tokens."""
    from colab_utils.fast import attention_kernels

    usual = attention_kernels.parts_for
    chosen = (lambda *_: parts) if parts else usual
    with mock.patch.object(attention_kernels, "parts_for", chosen):
        decoder = StaticDecoder(model, 1, len(prompt) + NEW)
        tokens = decode(decoder, prompt, NEW)  # also records the graph
        taken = []
        for _ in range(3):
            scores = decoder.start([prompt])
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(NEW):
                scores = decoder.step(scores.argmax(-1))
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        total, attention = busy(decode, decoder, prompt, NEW)
        alone, _ = busy(decoder.start, [prompt])
    found = {"tokens_s": round(NEW / statistics.median(taken), 1)}
    found |= {"busy_ms": round((total - alone) / NEW, 3)}
    found |= {"attention_ms": round(attention / NEW, 3)}
    return found, tokens


def main() -> None:
    tiny = "--tiny" in sys.argv
    folder = Path(sys.argv[1])
    emulate.t4()
    sizes = {"intermediate_size": 11008, "max_position_embeddings": 4096}
    if tiny:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4}
    emulate.random_model(LlamaConfig(**sizes), folder)
    model = ours.adapted(str(folder), 16)
    draw = torch.Generator().manual_seed(0)
    for count in CONTEXTS:
        prompt = torch.randint(3, 31000, (count,), generator=draw).tolist()
        if tiny:
            decoder = StaticDecoder(model, 1, count + NEW)
            print(count, decode(decoder, prompt, 4))
            continue
        one, tokens = measure(model, prompt, 1)
        several, others = measure(model, prompt, None)
        ids = torch.tensor([prompt], device=model.device)
        theirs = ours.looped(model)(ids, NEW)[0].tolist()
        row = {"context": count, "one part": one, "parts": several}
        row["same as one part"] = sum(map(int.__eq__, tokens, others))
        row["same as generate"] = sum(map(int.__eq__, theirs, others))
        row["one part as generate"] = sum(map(int.__eq__, theirs, tokens))
        print("CONTEXT", json.dumps(row), flush=True)
        emulate.append("context.json", row | emulate.card())


if __name__ == "__main__":
    main()
