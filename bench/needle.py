"""Find one sentence in a long text, before and after training on long rows.

    python bench/needle.py [tiny]

A text is made of sentences of the demo world, and some of them give a password: "The
password of Peru is lands." At its end, the text asks for the passwords. The demo model
first learns this by full fine-tuning on rows of SHORT tokens. From there, LoRA trains
on as many tokens again: in rows of SHORT tokens, or in rows of LONG tokens whose layers
compute in tiles. Each model must find one password at five depths of texts of several
lengths. Three seeds; writes bench/results/needle.json. `tiny` tests the script.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from peft import LoraConfig, get_peft_model

from colab_utils import demo, models
from colab_utils.fast import patch

OUT = Path(__file__).parent / "results" / "needle.json"
TINY = "tiny" in sys.argv
SHORT, LONG = 96, 960
LENGTHS = (96, 240, 480, 960)
DEPTHS = 5
TEXTS = 5 if TINY else 200  # of each length, a fifth at each depth
TOKENS = LONG if TINY else 2000 * 8 * SHORT  # of a training
SEEDS = (0,) if TINY else (0, 1, 2)
BATCH = 4 * SHORT if TINY else 8 * SHORT  # tokens of an update, at least a row
FULL, LORA = 1e-3, 2e-3  # learning rates
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class World(NamedTuple):
    """The tokenized parts of a text."""

    fillers: list[list[int]]
    countries: list[str]
    words: list[int]  # passwords: whole words of one token
    encode: Any

    @classmethod
    def of(cls, tokenizer: Any) -> World:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        facts = demo.facts()
        texts = [f"{f['capital']} is the capital of {f['country']}." for f in facts]
        texts += [f"People in {f['country']} speak {f['language']}." for f in facts]
        names = [f["country"] for f in facts]
        whole = {
            i
            for word, i in tokenizer.get_vocab().items()
            if word[0] == "▁"
            and word[1:].isalpha()
            and word.islower()
            and len(word) > 4
        }
        return cls([encode(text) for text in texts], names, sorted(whole), encode)

    def row(
        self, draw: random.Random, size: int, needles: int, depth: float | None = None
    ) -> tuple[list[int], list[int]]:
        """Return a row of about `size` tokens, and its labels: the passwords.

        Without `depth` the needles are anywhere.
        """
        names = draw.sample(self.countries, needles)
        words = [draw.choice(self.words) for _ in names]
        end = self.encode(".")
        found = [
            [*self.encode(f"The password of {name} is"), word, *end]
            for name, word in zip(names, words, strict=True)
        ]
        asked = [self.encode(f"What is the password of {n}? It is") for n in names]
        room = size - sum(map(len, found + asked)) - 3 * needles - 1
        text: list[list[int]] = []
        while room > 0:
            text.append(draw.choice(self.fillers))
            room -= len(text[-1])
        for needle in found:
            share = draw.random() if depth is None else depth
            text.insert(round(share * len(text)), needle)
        ids = [1, *(i for part in text for i in part)]
        labels = [-100] * len(ids)
        for i in draw.sample(range(needles), needles):
            ids += [*asked[i], words[i], *end]
            labels += [-100] * len(asked[i]) + [words[i]] + [-100] * len(end)
        return ids, labels


def batch_of(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Return rows as tensors, padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = [one + [0] * (longest - len(one)) for one, _ in rows]
    labels = [one + [-100] * (longest - len(one)) for _, one in rows]
    mask = [[1] * len(one) + [0] * (longest - len(one)) for one, _ in rows]
    given = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(value, device=DEVICE) for name, value in given.items()}


def train(model: Any, world: World, size: int, rate: float, seed: int) -> float:
    """Train on TOKENS tokens in rows of `size`; return the seconds."""
    draw, start = random.Random(seed), time.perf_counter()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    rows = max(1, BATCH // size)
    steps = TOKENS // (rows * size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.02
    )
    model.train()
    for _ in range(steps):
        needles = max(3, size // 32)  # a question for every 32 tokens
        batch = batch_of([world.row(draw, size, needles) for _ in range(rows)])
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def score(model: Any, world: World) -> dict[int, list[float]]:
    """Return for each length the share of passwords found at each depth."""
    model.eval()
    found: dict[int, list[float]] = {}
    for size in LENGTHS:
        draw, hits = random.Random(99), [0] * DEPTHS
        for i in range(TEXTS):
            depth = i % DEPTHS
            ids, labels = world.row(draw, size, 1, depth / (DEPTHS - 1))
            place = next(k for k, label in enumerate(labels) if label != -100)
            scores = model(input_ids=torch.tensor([ids[:place]], device=DEVICE)).logits
            hits[depth] += int(scores[0, -1].argmax() == labels[place])
        found[size] = [DEPTHS * hit / TEXTS for hit in hits]
    return found


def with_lora(folder: Path) -> Any:
    """Return the model in `folder` with an adapter."""
    base = models.load_model(str(folder)).float().to(DEVICE)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    return get_peft_model(base, config)


def main() -> None:
    world = World.of(models.load_tokenizer("demo"))
    results: list[dict[str, Any]] = []
    for seed in SEEDS:
        model = models.load_model("demo").float().to(DEVICE).requires_grad_(True)
        found: dict[str, Any] = {"seed": seed, "base": score(model, world)}
        seconds = {"short": train(model, world, SHORT, FULL, seed)}
        found["short"] = score(model, world)
        print(json.dumps(found), flush=True)
        folder = Path(tempfile.mkdtemp())
        model.save_pretrained(folder)
        for name, size, tiles in (("again short", SHORT, 1), ("then long", LONG, 2)):
            adapted = with_lora(folder)
            assert patch.apply(adapted, tiles=tiles)
            seconds[name] = train(adapted, world, size, LORA, seed + 10)
            patch.remove(adapted)
            found[name] = score(adapted, world)
            print(name, json.dumps(found[name]), flush=True)
        results.append({**found, "seconds": seconds})
        print(json.dumps(results[-1]), flush=True)
    if not TINY:
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
