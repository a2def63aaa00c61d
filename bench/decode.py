"""Measure the decoding speed of a 4-bit model with an adapter, and its GPU kernels.

    python bench/decode.py WAY CHECKPOINT [batch=1] [new=256]

WAY: ours, generate (PEFT and `model.generate`), static (the same with transformers'
static cache), unsloth. Adds a row to bench/results/decode.json. `floor_ms` is the time
in which the GPU copies as many bytes as the weights and the cache have.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAY, CHECKPOINT = sys.argv[1:3]
OPTIONS = {"batch": 1, "new": 256, "prompt": 64, "long": 512, "r": 16}
for pair in sys.argv[3:]:
    key, value = pair.split("=")
    OPTIONS[key] = int(value)
if WAY == "unsloth":
    import unsloth  # noqa: F401  (it patches the other libraries, so it comes first)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import ours
import torch
from torch.profiler import ProfilerActivity, profile

GPU = torch.cuda.is_available()


def generate(**given):
    """Return PEFT's model as a function that decodes with transformers' own loop."""
    emulate.t4()
    model = ours.adapted(CHECKPOINT, OPTIONS["r"])
    return ours.looped(model, **given)


def unsloth_peer():
    """Return a decoding function that calls Unsloth as its notebooks do."""
    return ours.looped(ours.unsloth(CHECKPOINT, OPTIONS["r"]), use_cache=True)


def wait() -> None:
    """Wait until the GPU has run all its kernels."""
    if GPU:
        torch.cuda.synchronize()


def seconds(run: Callable, *given) -> float:
    """Return the seconds that a call takes."""
    wait()
    begun = time.perf_counter()
    run(*given)
    wait()
    return time.perf_counter() - begun


def busy(run: Callable, ids: torch.Tensor, count: int) -> float:
    """Return the GPU time of a token in ms, over `count` tokens, without the prompt."""
    total = []
    for tokens in (1, 1 + count):
        with profile(activities=[ProfilerActivity.CUDA]) as prof:
            run(ids, tokens)
            wait()
        events = prof.key_averages()
        total.append(sum(e.self_device_time_total for e in events) / 1e3)
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:14]:
        each = event.self_device_time_total / count
        print(f"{each:8.1f} us {event.count / count:7.1f}x {event.key[:90]}")
    return (total[1] - total[0]) / count


def copied() -> float:
    """Return the bytes a second that the GPU reads and writes when it copies."""
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    b.copy_(a)
    best = min(seconds(b.copy_, a) for _ in range(5))
    return 2 * a.numel() / best


def main() -> None:
    o = OPTIONS
    ways = {"ours": lambda: ours.decode(CHECKPOINT, o), "generate": generate}
    ways |= {"unsloth": unsloth_peer}
    ways |= {"static": lambda: generate(cache_implementation="static")}
    run = ways[WAY]()
    vocabulary = json.loads((Path(CHECKPOINT) / "config.json").read_text())
    draw = torch.Generator().manual_seed(1)
    device = "cuda" if GPU else "cpu"
    sizes = ((o["batch"], o["prompt"]), (1, o["long"]))
    ids, long = (
        torch.randint(3, vocabulary["vocab_size"] - 1, size, generator=draw).to(device)
        for size in sizes
    )
    found = {"way": WAY, **o, "first_call_s": round(seconds(run, ids, 16), 2)}
    taken = statistics.median(seconds(run, ids, o["new"]) for _ in range(3))
    found["tokens_s"] = round(o["batch"] * o["new"] / taken, 1)
    run(long, 1)
    first = statistics.median(seconds(run, long, 1) for _ in range(5))
    found["first_token_ms"] = round(first * 1e3, 1)
    if GPU:
        found |= emulate.card()
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        if o["batch"] == 1:  # the whole context
            run(torch.randint(3, 1000, (1, 2000), device=device), 40)
            found["full_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["busy_ms"] = round(busy(run, ids, 32), 2)
        # 3.6 GB of weights, and the keys and values of 80 tokens of Llama 2 7B
        size = 3.6e9 + o["batch"] * 80 * 2**19
        found["floor_ms"] = round(size / copied() * 1e3, 2)
    print("DECODE", json.dumps(found), flush=True)
    emulate.append("decode.json", found)


if __name__ == "__main__":
    main()
