"""Measure DPO of the shape of Llama 2 7B under a T4's limits, next to TRL and Unsloth.

    python bench/preferences.py WAY CHECKPOINT [key=value ...]

WAY: fast (our trainer on the fast path), sft (supervised fine-tuning with the same plan
and the same tokens), trl (TRL's DPOTrainer with PEFT and bitsandbytes, adapters in
float32), trl-precomputed (the same, with the reference computed beforehand), unsloth
(Unsloth's patched DPOTrainer, in an environment of its own: see rivals/unsloth.txt).
CHECKPOINT: a folder with a model; if it is missing, random weights in the shape of
Llama 2 7B are written there. On a CPU, "demo" makes a dry run.

Keys: pairs (of an update), bs (pairs of a micro-batch; 0: as the plan says for fast and
sft, 1 for the others), updates, prof (updates whose kernels are summed), r (rank), gc
(gradient checkpointing of trl and unsloth: 1 or 0). On a GPU this adds a row to
bench/results/preferences.json.

The rows have the lengths of gsm8k: prompts of about 60 tokens, answers of about 130.
`gpu_ms_a_pair` sums the times of all kernels of an update; the reference's forward pass
of the fast path is measured separately and added to `gpu_ms_a_pair_with_reference`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
WAY, CHECKPOINT = sys.argv[1:3]
OPTIONS: dict[str, Any] = {"pairs": 16, "bs": 0, "updates": 6, "prof": 2, "r": 16}
OPTIONS |= {"gc": 1}
for pair in sys.argv[3:]:
    key, value = pair.split("=")
    OPTIONS[key] = type(OPTIONS[key])(value)
if WAY == "unsloth":
    import unsloth  # noqa: F401  (it patches the other libraries, so it comes first)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, TrainerCallback

GPU = torch.cuda.is_available()
LONGEST = 512 if GPU else 96  # tokens of a sequence


def token_pairs(words: int, count: int) -> list[dict[str, Any]]:
    """Return random pairs with the lengths of gsm8k's questions and answers.

    exp(N(4.0, 0.35)) tokens of a prompt and exp(N(4.8, 0.45)) of an answer: medians of
    55 and 120.
    """
    draw = torch.Generator().manual_seed(0)

    def length(mean: float, spread: float, most: int) -> int:
        noise = torch.randn((), generator=draw).item()
        exact = torch.tensor(mean + spread * noise).exp().item()
        return max(8, min(most, int(exact) if GPU else int(exact) // 6))

    def ids(n: int) -> list[int]:
        return torch.randint(3, words - 1, (n,), generator=draw).tolist()

    found = []
    for index in range(count):
        prompt = ids(length(4.0, 0.35, LONGEST // 3))
        pair: dict[str, Any] = {"index": index}
        for name in ("chosen", "rejected"):
            answer = ids(length(4.8, 0.45, LONGEST - len(prompt)))
            masks = [0] * len(prompt) + [1] * len(answer)
            pair[name] = {"input_ids": prompt + answer, "assistant_masks": masks}
        found.append(pair)
    return found


def tokens_of(pair: dict[str, Any]) -> int:
    """Return the tokens of a pair's two sequences."""
    return sum(len(pair[name]["input_ids"]) for name in ("chosen", "rejected"))


def settings(folder: str, bs: int) -> dict[str, Any]:
    """Return the settings that all ways share; `bs` is in pairs."""
    o = OPTIONS
    return {
        "output_dir": folder,
        "per_device_train_batch_size": bs,
        "gradient_accumulation_steps": -(-o["pairs"] // bs),
        "max_steps": o["updates"],
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "optim": "adamw_8bit" if GPU else "adamw_torch",
        "fp16": GPU,
        "bf16": False,
        "use_cpu": not GPU,
        "dataloader_pin_memory": GPU,
        "disable_tqdm": True,
        "seed": 0,
    }


def plan_of(pairs: list[dict[str, Any]]) -> Any:
    """Return the plan for a T4: that of notebook 09."""
    from colab_utils import memory, models

    config = models.load_config(CHECKPOINT)
    sizes = [tokens_of(pair) for pair in pairs]
    return memory.plan(
        config,
        "qlora",
        OPTIONS["r"],
        longest=max(sizes),
        update=OPTIONS["pairs"] * sum(sizes) // len(sizes),
        budget=(14.56 - 0.3) * memory.GIB,
        gpu=GPU,
        optimizer="adamw_8bit" if GPU else "adamw_torch",
    )


def ours(pairs: list[dict[str, Any]], folder: str, found: dict[str, Any]) -> Any:
    """Build our trainer of DPO, or of SFT on the same sequences."""
    import ours as course
    from trl import SFTConfig

    from colab_utils import memory, models, training
    from colab_utils.training import pairs as made
    from colab_utils.training import preferences
    from colab_utils.training.sft import FastSFTTrainer

    emulate.t4()
    plan = plan_of(pairs)
    bs, _ = made.batches(pairs, plan, OPTIONS["pairs"])
    bs = OPTIONS["bs"] or bs
    found |= {"bs": bs, "plan": str(plan)}
    found["planned_gib"] = round(plan.cost.peak / memory.GIB, 2)
    shared: dict[str, Any] = settings(folder, bs) | {"gradient_checkpointing": False}
    rows: list[dict[str, Any]] = pairs
    kind: Any = preferences.FastDPOTrainer
    if WAY == "sft":
        kind = FastSFTTrainer
        rows = [pair[name] for pair in pairs for name in ("chosen", "rejected")]
        shared |= {"max_length": plan.tokens, "packing": True}
        shared |= {"per_device_train_batch_size": 1}
        shared |= {"gradient_accumulation_steps": plan.accumulation}
    training.prepare_fast_path(models.load_config(CHECKPOINT))
    trainer = kind(
        model=models.load_model(CHECKPOINT, models.quantization_config()),
        args=SFTConfig(**shared),
        train_dataset=Dataset.from_list(rows),
        processing_class=models.load_tokenizer(CHECKPOINT),
        peft_config=course.lora(OPTIONS["r"]),
    )
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, plan)
    trainer.recovery.used = True  # another plan would hide what this one needs
    return trainer


def trls(pairs: list[dict[str, Any]], folder: str, found: dict[str, Any]) -> Any:
    """Build TRL's trainer with PEFT on bitsandbytes; only the adapters are cast."""
    import ours as course
    from trl import DPOConfig, DPOTrainer

    from colab_utils import models, training

    emulate.t4()
    found["bs"] = bs = OPTIONS["bs"] or 1
    trainer = ready(DPOTrainer)(
        model=models.load_model(CHECKPOINT, models.quantization_config()),
        args=DPOConfig(
            **settings(folder, bs),
            max_length=None,
            gradient_checkpointing=bool(OPTIONS["gc"]),
            precompute_ref_log_probs=WAY == "trl-precomputed",
        ),
        train_dataset=as_columns(pairs),
        processing_class=models.load_tokenizer(CHECKPOINT),
        peft_config=course.lora(OPTIONS["r"]),
    )
    training.float32_adapters(trainer)
    return trainer


def unsloths(pairs: list[dict[str, Any]], folder: str, found: dict[str, Any]) -> Any:
    """Build Unsloth's trainer as its DPO notebook does."""
    from trl import DPOConfig, DPOTrainer
    from unsloth import FastLanguageModel, PatchDPOTrainer

    from colab_utils.fast import lora

    PatchDPOTrainer()
    emulate.limit()
    found["bs"] = bs = OPTIONS["bs"] or 1
    model, tokenizer = FastLanguageModel.from_pretrained(
        CHECKPOINT,
        max_seq_length=LONGEST,
        dtype=torch.float16 if GPU else None,
        load_in_4bit=True,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=OPTIONS["r"],
        target_modules=list(lora.LINEARS),
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth" if OPTIONS["gc"] else False,
        random_state=0,
    )
    return ready(DPOTrainer)(
        model=model,
        ref_model=None,
        args=DPOConfig(**settings(folder, bs), max_length=LONGEST),
        train_dataset=as_columns(pairs),
        processing_class=tokenizer,
    )


def ready(trainer: type) -> type:
    """Return a trainer of TRL that takes rows of token ids as they are."""
    take = {"_prepare_dataset": lambda self, dataset, *_, **__: dataset}
    return type("Ready", (trainer,), take)


def as_columns(pairs: list[dict[str, Any]]) -> Dataset:
    """Return the pairs in the columns of TRL's own collator, which are token ids."""
    rows = []
    for pair in pairs:
        masks = pair["chosen"]["assistant_masks"]
        first = masks.index(1)
        row = {"prompt_ids": pair["chosen"]["input_ids"][:first]}
        for name in ("chosen", "rejected"):
            row[f"{name}_ids"] = pair[name]["input_ids"][first:]
        rows.append(row)
    return Dataset.from_list(rows)


class Clock(TrainerCallback):
    """Measures each update, and sums the kernel times of the last `prof` updates."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.prof: Any = None
        self.first = OPTIONS["updates"] - OPTIONS["prof"]

    def on_step_begin(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
            if state.global_step == 1:
                torch.cuda.reset_peak_memory_stats()
            if state.global_step == self.first and OPTIONS["prof"]:
                self.prof = profile(activities=[ProfilerActivity.CUDA])
                self.prof.__enter__()
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)
        if self.prof and state.global_step == OPTIONS["updates"]:
            self.prof.__exit__(None, None, None)


def kernel_ms(prof: Any) -> float:
    """Return the summed time of all GPU kernels and copies."""
    return sum(event.self_device_time_total for event in prof.key_averages()) / 1e3


def score(trainer: Any, count: int) -> dict[str, float]:
    """Score the reference; return GPU and wall time a pair."""
    trainer.score_reference()  # the first pass compiles and tunes kernels
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    kinds = [ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU]
    with profile(activities=kinds) as prof:
        trainer.score_reference()
        if GPU:
            torch.cuda.synchronize()
    spent = (time.perf_counter() - began) / count
    found = {"reference_ms_a_pair": round(spent * 1e3, 1)}
    if GPU:
        found["reference_gpu_ms_a_pair"] = round(kernel_ms(prof) / count, 1)
        found["reference_peak_gib"] = peak_gib()
    return found


def peak_gib() -> float:
    """Return the peak of torch's allocated memory."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def measure() -> dict[str, Any]:
    """Train, and return the measurements."""
    o, clock = OPTIONS, Clock()
    words = 1024
    if CHECKPOINT != "demo":
        words = AutoConfig.from_pretrained(CHECKPOINT).vocab_size
    pairs = token_pairs(words, o["pairs"] * o["updates"])
    found = {"way": WAY, **o, "pairs_in_all": len(pairs)}
    found["tokens_a_pair"] = round(sum(map(tokens_of, pairs)) / len(pairs))
    build = {"fast": ours, "sft": ours, "unsloth": unsloths}.get(WAY, trls)
    trainer = build(pairs, tempfile.mkdtemp(), found)
    trainer.add_callback(clock)
    if WAY == "fast":
        found |= score(trainer, len(pairs))
    counted = count_pairs(trainer)
    began = time.perf_counter()
    trainer.train()
    found["train_s"] = round(time.perf_counter() - began, 1)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    found |= {"losses": [round(entry["loss"], 4) for entry in log]}
    found["update_s"] = round(statistics.median(clock.seconds[1:]), 3)
    if GPU:
        found |= emulate.card() | {"peak_gib": peak_gib()}
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    if clock.prof:
        seen = sum(n for step, n in counted if step >= clock.first)
        found["pairs_profiled"] = seen
        found["gpu_ms_a_pair"] = round(kernel_ms(clock.prof) / seen, 1)
        more = found.get("reference_gpu_ms_a_pair", 0.0)
        found["gpu_ms_a_pair_with_reference"] = round(found["gpu_ms_a_pair"] + more, 1)
    return found


def count_pairs(trainer: Any) -> list[tuple[int, float]]:
    """Count the pairs of each micro-batch; a pair of SFT is two packed rows."""
    counted: list[tuple[int, float]] = []
    compute_loss = trainer.compute_loss

    def counting(model, inputs, *args, **kwargs):
        rows = len(inputs["input_ids"])
        if "position_ids" in inputs:  # packed
            rows = int((inputs["position_ids"] == 0).sum())
        counted.append((trainer.state.global_step, rows / 2))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    return counted


if __name__ == "__main__":
    if CHECKPOINT != "demo" and not Path(CHECKPOINT).exists():
        import run

        run.make_checkpoint(Path(CHECKPOINT))
        torch.cuda.empty_cache()
    try:
        result = measure()
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        result = {"way": WAY, **OPTIONS, "out_of_memory": str(error)[:600]}
    print("PREFERENCES", json.dumps(result), flush=True)
    if GPU:
        emulate.append("preferences.json", result)
