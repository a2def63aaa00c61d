"""Measure quality against quantity on gsm8k: a real model, four sets of rows.

    python bench/quality.py gsm8k-train.jsonl [--model FOLDER] [--processes 3]

The file is https://github.com/openai/grade-school-math (MIT). Flaws are planted in its
rows, and the rules of the course remove what they find. SmolLM2-135M (built from PyPI
by tools/real_model.py) is then trained on everything, the curated rows, as many random
rows, and a quarter of the curated rows by k-means. Each training reads the same number
of tokens, with three seeds, once for each of two numbers of tokens. The measure is the
loss of held-out answers, in nats a token. Prints the cleaning's recall, and writes
bench/results/quality.json.

A small model's training waits for the CPU most of the time, so `--processes` runs
several at once. A smoke test: `--rows 60 --test 8 --tokens 2000 --seeds 1 --model demo
--out /tmp/quality.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from colab_utils import data, evaluation, models
from colab_utils.data.curation import dataset_rules, quality, selection

FLAWS = {"wrong": 0.25, "cut off": 0.15, "foreign format": 0.2}
COPIES = 0.25
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
RATE, BATCH = 1e-3, 32
NUMBER = re.compile(r"\d+")


def spoil(answer: str, flaw: str, other: str, draw: random.Random) -> str:
    """Return an answer with a flaw; `other` is the answer to another question."""
    if flaw == "wrong":
        return other
    if flaw == "cut off":
        return answer[: int(len(answer) * draw.uniform(0.3, 0.7))]
    final = answer.rpartition("#### ")[2]
    formats = (f"The answer is: {final}.", json.dumps({"answer": final}))
    return draw.choice((*formats, answer.upper()))


def plant(rows: list[dict[str, str]], seed: int) -> list[tuple[dict[str, str], str]]:
    """Return the rows and copies of some, each with its flaw, in random order."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        flaw = draw.choices([*FLAWS, ""], [*FLAWS.values(), 1 - sum(FLAWS.values())])[0]
        answer = row["answer"]
        if flaw:
            answer = spoil(answer, flaw, draw.choice(rows)["answer"], draw)
        found.append(({**row, "answer": answer}, flaw))
    for row, _ in draw.choices(found, k=int(COPIES * len(rows))):
        found.append(({**row, "question": row["question"].lower()}, "copy"))
    draw.shuffle(found)
    return found


def unrelated(row: data.Row) -> str | None:
    """Reject an answer that uses less than half of the question's numbers."""
    asked = set(NUMBER.findall(data.prompt_of(row)))
    used = asked & set(NUMBER.findall(data.answer_of(row)))
    few = asked and len(used) < len(asked) / 2
    return f"unrelated: {len(used)} of {len(asked)} numbers" if few else None


def unfinished(row: data.Row) -> str | None:
    """Reject an answer without gsm8k's last line."""
    last = data.answer_of(row).rpartition("\n")[2]
    return None if last.startswith("#### ") else "unfinished: no line ####"


def curate(rows: list[data.Row]) -> list[data.Row]:
    """Return the rows that rules and duplicates leave."""
    rules = [quality.refusal, quality.repetition, dataset_rules.Formats.of(rows)]
    kept, rejected = data.filter_rows(rows, [*rules, unfinished, unrelated])
    print(data.count_reasons(rejected))
    first = data.near_duplicates(kept)
    return [row for i, row in enumerate(kept) if first[i] == i]


def batches(tokens: list[Any], draw: random.Random) -> Iterator[list[Any]]:
    """Yield batches without end, each epoch in another order."""
    while True:
        order = draw.sample(tokens, len(tokens))
        for start in range(0, len(order), BATCH):
            yield order[start : start + BATCH]


def fine_tune(
    model: Any, tokens: list[Any], budget: int, seed: int, lora: LoraConfig = LORA
) -> Any:
    """Return the model with an adapter that was trained on `budget` tokens."""
    set_seed(seed)
    model = get_peft_model(model, lora).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    seen = 0
    for batch in batches(tokens, random.Random(seed)):
        if seen >= budget:
            break
        names = ("input_ids", "assistant_masks")
        ids, mask = (
            pad_sequence([torch.tensor(row[name]) for row in batch], batch_first=True)
            for name in names
        )
        real = pad_sequence([torch.ones(len(r["input_ids"])) for r in batch], True)
        ids, mask, real = (each.to(model.device) for each in (ids, mask, real))
        done = seen / budget
        optimizer.param_groups[0]["lr"] = RATE * min(1, 20 * done + 0.4) * (1 - done)
        # The logits of the trained tokens only: all of them would take 8 GiB a batch.
        llama = model.get_base_model()
        hidden = llama.model(ids, attention_mask=real).last_hidden_state[:, :-1]
        trained = mask[:, 1:].bool()
        logits = llama.lm_head(hidden[trained]).float()
        torch.nn.functional.cross_entropy(logits, ids[:, 1:][trained]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += sum(len(row["input_ids"]) for row in batch)
    return model.eval()


def train(job: tuple[str, str, list[data.Row], list[data.Row], int, int]) -> float:
    """Return the loss of held-out answers after a training on the rows of a job."""
    _, path, rows, test, tokens, seed = job
    tokenizer = models.load_tokenizer(path)
    model = models.load_model(path)
    model = fine_tune(model, data.tokenize(rows, tokenizer), tokens, seed)
    return evaluation.score(model, tokenizer, test).loss


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--tokens", type=int, nargs="+", default=[200_000, 600_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality.json")
    options = parser.parse_args()
    if not options.model:
        from tools.real_model import build

        options.model = str(build())
    lines = options.file.read_text("utf-8").splitlines()
    raw = [json.loads(line) for line in random.Random(0).sample(lines, len(lines))]
    split = options.test + options.rows
    test = [data.to_row(row, n) for n, row in enumerate(raw[: options.test])]
    planted = plant(raw[options.test : split], seed=0)
    everything = [data.to_row(row, n) for n, (row, _) in enumerate(planted)]
    curated = curate(everything)
    bad = {n for n, (_, flaw) in enumerate(planted) if flaw not in ("", "copy")}
    left = sum(row["line"] in bad for row in curated)
    print(f"recall {1 - left / len(bad):.1%}; flawed: {left} of {len(curated)} curated")
    tokenizer = models.load_tokenizer(options.model)
    base = models.load_model(options.model)
    before = evaluation.score(base, tokenizer, test).loss
    texts = [f"{data.prompt_of(row)} {data.answer_of(row)}" for row in curated]
    vectors = evaluation.embeddings(base, tokenizer, texts)
    quarter = selection.k_means(vectors, len(curated) // 4)
    losses: dict[str, dict[str, list[float]]] = {}
    start = time.time()
    jobs = []
    for tokens, seed in itertools.product(sorted(options.tokens), range(options.seeds)):
        random_rows = random.Random(seed).sample(everything, len(curated))
        sets = {"everything": everything, "curated": curated, "random": random_rows}
        for name, rows in (sets | {"quarter": [curated[i] for i in quarter]}).items():
            jobs.append((name, options.model, rows, test, tokens, seed))
    # A copy of a process that uses the GPU can't use it: spawn starts new ones.
    pool = ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"))
    with pool:
        for (name, _, rows, _, tokens, seed), loss in zip(
            jobs, pool.map(train, jobs), strict=True
        ):
            losses.setdefault(str(tokens), {}).setdefault(name, []).append(loss)
            print(
                f"{tokens:,} tokens, seed {seed}, {name}, {len(rows)} rows: {loss:.3f}"
            )
    result = {
        "model": Path(options.model).name,
        "rows": {"everything": len(everything), "curated": len(curated)},
        "flawed": {"everything": len(bad), "curated": left},
        "loss_before": before,
        "losses": losses,
        "seconds": round(time.time() - start),
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
