"""Find one sentence in a long text, before and after training on long rows.

    python bench/needle.py CHECKPOINT [--tiny]

A text is made of sentences of the demo world, and some of them give a password: "The
password of Peru is 4821." At its end, the text asks for passwords. SmolLM2-135M finds
some of them in short texts, and none in texts that are longer than those it was trained
on, 8,192 tokens. LoRA trains it on rows of SHORT tokens, and then on as many tokens
again: in rows of SHORT tokens, or in rows of LONG tokens whose layers compute in tiles.
Each model must find one password at five depths of texts of several lengths. Three
seeds; writes bench/results/needle.json.

CHECKPOINT is a folder with SmolLM2-135M-Instruct (tools/real_model.py). `--tiny` tests
the script with few tokens, for example on the demo model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from peft import LoraConfig, get_peft_model

from colab_utils import demo, memory, models
from colab_utils.fast import patch
from colab_utils.shape import Shape

OUT = emulate.RESULTS / "needle.json"
DEPTHS, RATE, WARM = 5, 5e-4, 5
GAP = 128  # tokens of a row for each of its passwords


class Sizes(NamedTuple):
    """The numbers of tokens of rows and texts, and how many of them there are."""

    short: int = 2048
    long: int = 16_384
    updates: int = 30  # of LONG tokens, in each of the two stages
    lengths: tuple[int, ...] = (2048, 8192, 16_384, 32_768)
    texts: int = 20  # of each length, a fifth at each depth
    seeds: int = 3


TINY = Sizes(96, 384, 2, (96, 384), DEPTHS, 1)


class World(NamedTuple):
    """The tokenized sentences of a text, and what asks for a password."""

    fillers: list[list[int]]
    countries: list[str]
    encode: Any

    @classmethod
    def of(cls, tokenizer: Any) -> World:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        facts = demo.facts()
        texts = [f" {f['capital']} is the capital of {f['country']}." for f in facts]
        texts += [f" People in {f['country']} speak {f['language']}." for f in facts]
        return cls([encode(t) for t in texts], [f["country"] for f in facts], encode)

    def row(
        self, draw: random.Random, size: int, needles: int, depth: float | None = None
    ) -> tuple[list[int], list[int]]:
        """Return a row of at most `size` tokens, and its labels: the passwords.

        Without `depth` the needles are anywhere.
        """
        names = draw.sample(self.countries, needles)
        passwords = [f" {draw.randint(1000, 9999)}." for _ in names]
        pairs = list(zip(names, passwords, strict=True))
        found = [self.encode(f" The password of {n} is{p}") for n, p in pairs]
        asked = [self.encode(f" Repeat the password of {n}. It is") for n in names]
        answers = [self.encode(password) for password in passwords]
        room = size - sum(map(len, [*found, *asked, *answers]))
        text: list[list[int]] = []
        while len(filler := draw.choice(self.fillers)) <= room:
            text.append(filler)
            room -= len(filler)
        for needle in found:
            share = draw.random() if depth is None else depth
            text.insert(round(share * len(text)), needle)
        ids = [i for part in text for i in part]
        labels = [-100] * len(ids)
        for i in draw.sample(range(needles), needles):
            ids += [*asked[i], *answers[i]]
            labels += [-100] * len(asked[i]) + answers[i]
        return ids, labels


def train(model: Any, world: World, size: int, o: Sizes, seed: int) -> float:
    """Train on rows of `size` tokens, LONG tokens an update; return the seconds."""
    draw, start = random.Random(seed), time.perf_counter()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / WARM) * (1 - i / o.updates)
    )
    rows, needles = o.long // size, max(1, size // GAP)
    half = model.dtype == torch.bfloat16
    model.train()
    for _ in range(o.updates):
        for _ in range(rows):
            ids, labels = world.row(draw, size, needles)
            ids, labels = (
                torch.tensor([x], device=model.device) for x in (ids, labels)
            )
            with torch.autocast(model.device.type, torch.bfloat16, half):
                loss = model(input_ids=ids, labels=labels).loss
            (loss / rows).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def score(model: Any, world: World, o: Sizes) -> dict[int, list[float]]:
    """Return for each length the share of passwords found at each depth."""
    model.eval()
    found: dict[int, list[float]] = {}
    for size in o.lengths:
        draw, hits = random.Random(99), [0] * DEPTHS
        for i in range(o.texts):
            depth = i % DEPTHS
            ids, labels = world.row(draw, size, 1, depth / (DEPTHS - 1))
            answer = [label for label in labels if label != -100]
            end = len(answer) + 1
            given = torch.tensor([ids], device=model.device)
            scores = model(given, logits_to_keep=end).logits[0, :-1]
            hits[depth] += scores.argmax(-1).tolist() == answer
        found[size] = [DEPTHS * hit / o.texts for hit in hits]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    o = TINY if given.tiny else Sizes()
    emulate.limit()
    # transformers' attention of grouped heads has no other kernel of little memory.
    torch.backends.cuda.enable_flash_sdp(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = World.of(models.load_tokenizer(given.checkpoint))
    # In bfloat16 no loss has to be scaled; the adapters stay float32.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = models.load_model(given.checkpoint).to(device, dtype)
    tiles = Shape.from_config(base.config).kv_heads
    card = emulate.card() if device == "cuda" else {"card": "CPU"}
    results: list[dict[str, Any]] = [{"rows": "none", "found": score(base, world, o)}]
    print(json.dumps(results[0]), flush=True)
    ways = [("short", o.short, 1), ("long", o.long, tiles)]
    for seed in range(o.seeds):
        torch.manual_seed(seed)
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(base, config)
        first: dict[str, torch.Tensor] = {}
        for name, size, parts in (ways[0], *ways):
            model.load_state_dict(first, strict=False)
            assert patch.apply(model, tiles=parts)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            before = "short, then " if first else ""
            row: dict[str, Any] = {"seed": seed, "rows": before + name, **card}
            stage = seed + 1000 * bool(first)  # the second stage draws other rows
            row["seconds"] = round(train(model, world, size, o, stage), 1)
            if device == "cuda":
                peak = torch.cuda.max_memory_allocated() / memory.GIB
                row["peak_gib"] = round(peak, 2)
            patch.remove(model)
            row["found"] = score(model, world, o)
            print(json.dumps(row), flush=True)
            results.append(row)
            if not given.tiny:
                OUT.write_text(json.dumps(results, indent=1) + "\n")
            if not first:
                state = model.state_dict()
                first = {n: t.clone() for n, t in state.items() if "lora_" in n}
        base = model.unload()


if __name__ == "__main__":
    main()
