"""Measure guesses at later tokens: what they cost, and how often they are right.

    python bench/lookup.py cost CHECKPOINT
    python bench/lookup.py share CHECKPOINT PROMPTS.jsonl

`cost`, on a GPU under a T4's limits: the time of a step of one token, and of a step
that reads several tokens, in 4 bits with an adapter, after 64 and 1,900 tokens.
`share`, on any machine: the steps and seconds of greedy answers with guesses and
without, for each `task` of the file, whose rows have a `task` and a `prompt`. Both
write rows to bench/results/lookup.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import ours
import torch
from torch.profiler import ProfilerActivity, profile

from colab_utils import generation, models
from colab_utils.fast.decoding_linears import READ
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.generation import lookup

NEW, TIMES = 160, 64


def timed(run) -> tuple[float, float]:
    """Return the median time of a call in ms, and the GPU time."""
    run()
    taken = []
    for _ in range(TIMES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run().argmax(-1).tolist()
        taken.append(1e3 * (time.perf_counter() - began))
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(8):
            run()
        torch.cuda.synchronize()
    busy = sum(e.self_device_time_total for e in prof.key_averages()) / 8e3
    return round(statistics.median(taken), 3), round(busy, 3)


def cost(folder: str) -> list[dict]:
    """Return a row for each length of the context."""
    emulate.t4()
    model, found = ours.adapted(folder, 16), []
    for context in (64, 1900):
        decoder = StaticDecoder(model, 1, 2048)
        decoder.start([list(range(3, 3 + context))])
        token = torch.tensor([5], device=decoder.device)
        row: dict = {"context": context}
        tokens = [5] * READ
        row[f"read {READ}"] = timed(lambda d=decoder, t=tokens: d.read(t))
        row["step"] = timed(lambda d=decoder, t=token: d.step(t))
        found.append(row | emulate.card())
    return found


def share(folder: str, file: str) -> list[dict]:
    """Return a row for each task."""
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    tasks: dict[str, list] = {}
    for line in map(json.loads, lines):
        tasks.setdefault(line["task"], []).append(line["prompt"])
    calls: Counter[str] = Counter()

    def counted(name: str):
        whole = getattr(StaticDecoder, name)

        def call(self, *given):
            calls[name] += 1
            return whole(self, *given)

        return mock.patch.object(StaticDecoder, name, call)

    found = []
    for task, prompts in tasks.items():
        row: dict = {"task": task, "prompts": len(prompts)}
        texts = []
        for way, least in (("without", 2.0), ("with", lookup.LEAST)):
            calls.clear()
            with (
                mock.patch.object(lookup, "LEAST", least),
                counted("step"),
                counted("read"),
            ):
                began = time.process_time()
                some = [generation.stream(model, tokenizer, p, NEW) for p in prompts]
                texts.append([list(one) for one in some])
                row[way] = {"cpu_s": round(time.process_time() - began, 1), **calls}
            row[way]["tokens"] = sum(map(len, texts[-1]))
        one, other = (["".join(pieces) for pieces in some] for some in texts)
        row["equal answers"] = sum(map(str.__eq__, one, other))
        found.append({"model": Path(folder).name, **row})
    return found


def main() -> None:
    for row in {"cost": cost, "share": share}[sys.argv[1]](*sys.argv[2:]):
        print("LOOKUP", json.dumps(row), flush=True)
        emulate.append("lookup.json", {"way": sys.argv[1], **row})


if __name__ == "__main__":
    main()
