"""Measure the GPU time of a training step, by kind of kernel, for one way to train.

    python bench/speed.py WAY CHECKPOINT [key=value ...]

WAY: fast and lean (the fast path), plain (the reference path), published (the widely
copied Llama 2 notebook), unsloth (in an environment of its own; 2026.10.9 needs trl
1.15.0 and datasets 4.8.5). CHECKPOINT: a folder with a model. Keys: seq (tokens a row),
bs (rows a micro-batch), ga (gradient accumulation), mix (1: packed documents of
realistic lengths; 0: one document of `seq` tokens), r (rank), steps, prof (steps whose
kernels are summed), recompute (checkpointed layers; plain, fast), gc (Unsloth's
checkpointing: unsloth, true, false), tiled (1: Unsloth's tiled MLP). Adds a row to
bench/results/speed.json.

The sum of kernel times (gpu_ms) also predicts a slower GPU: the wall-clock time on a
fast GPU is bound by kernel launches. busy_ms counts overlapping kernels and copies
once.
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
OPTIONS: dict[str, Any] = {"seq": 2048, "bs": 1, "ga": 1, "mix": 1, "r": 16}
OPTIONS |= {"steps": 20, "warm": 3, "prof": 8, "recompute": 0, "gc": "unsloth"}
OPTIONS["tiled"] = 0
for pair in sys.argv[3:]:
    key, value = pair.split("=")
    OPTIONS[key] = type(OPTIONS[key])(value)
OPTIONS["prof"] = max(0, min(OPTIONS["prof"], OPTIONS["steps"] - 2))
if WAY == "unsloth":
    import unsloth  # noqa: F401  (it patches the other libraries, so it comes first)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from colab_utils import memory

GPU = torch.cuda.is_available()


def documents() -> Dataset:
    """Return random documents, the same for every way.

    Their lengths are exp(N(5, 0.8)), limited to 16 ... 1,024 tokens.
    """
    o, draw = OPTIONS, torch.Generator().manual_seed(0)
    words = json.loads((Path(CHECKPOINT) / "config.json").read_text())["vocab_size"]
    rows = o["bs"] * o["ga"] * (o["steps"] + o["warm"] + 1)
    lengths = torch.full((rows,), o["seq"])
    if o["mix"]:
        noise = torch.randn(rows * o["seq"] // 120, generator=draw)
        lengths = (noise * 0.8 + 5).exp().clamp(16, min(1024, o["seq"])).long()
    ids = [torch.randint(3, words - 1, (n,), generator=draw).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": ids})


class Clock(TrainerCallback):
    """Measures the time of each step, and the kernel times of some later steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.prof = None

    def on_step_begin(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
            if state.global_step == OPTIONS["warm"]:
                torch.cuda.reset_peak_memory_stats()
            if OPTIONS["prof"] and state.global_step == OPTIONS["warm"] + 2:
                self.prof = profile(activities=[ProfilerActivity.CUDA])
                self.prof.__enter__()
        self.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
        self.seconds.append(time.time() - self.began)
        if self.prof and state.global_step == OPTIONS["warm"] + 2 + OPTIONS["prof"]:
            self.prof.__exit__(None, None, None)


def published(checkpoint, o, ds, config, callbacks):
    """Build the trainer of the published notebook, on the same packed rows.

    It has rank 64 on q and v, norms in float32, and checkpoints all layers.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from colab_utils import models, training

    emulate.t4()
    o["r"] = 64
    model = models.load_model(checkpoint, models.quantization_config())
    lora = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, task_type="CAUSAL_LM")
    lora.target_modules = {"q_proj", "v_proj"}
    settings = config | {"optim": "paged_adamw_32bit" if GPU else "adamw_torch"}
    trainer = SFTTrainer(
        model=get_peft_model(prepare_model_for_kbit_training(model), lora),
        processing_class=models.load_tokenizer(checkpoint),
        train_dataset=ds,
        callbacks=callbacks,
        args=SFTConfig(**settings, gradient_checkpointing=True),
    )
    training.float32_adapters(trainer)
    return trainer


def unsloth_peer(checkpoint, o, ds, config, callbacks):
    """Build Unsloth's trainer as its notebooks do."""
    from unsloth import FastLanguageModel

    from colab_utils.fast import lora

    emulate.limit()
    model, tokenizer = FastLanguageModel.from_pretrained(
        checkpoint,
        max_seq_length=o["seq"],
        dtype=torch.float16,
        load_in_4bit=True,
        local_files_only=True,
        unsloth_tiled_mlp=bool(o["tiled"]),
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=o["r"],
        target_modules=list(lora.LINEARS),
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        random_state=0,
        use_gradient_checkpointing={"true": True, "false": False}.get(o["gc"], o["gc"]),
    )
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=ds,
        callbacks=callbacks,
        args=SFTConfig(**config),
    )


def busy(prof: profile) -> float:
    """Return the milliseconds in which the GPU was busy; overlaps count once."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in prof.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    total = last = 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total / 1e3


def measure() -> dict[str, Any]:
    """Train, and return the measurements."""
    o, clock = OPTIONS, Clock()
    config = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": o["bs"],
        "gradient_accumulation_steps": o["ga"],
        "max_steps": o["steps"] + o["warm"],
        "learning_rate": 2e-4,
        "fp16": GPU,
        "bf16": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "max_length": o["seq"],
        "optim": "adamw_8bit" if GPU else "adamw_torch",
        "packing": bool(o["mix"]),
        "disable_tqdm": True,
        "use_cpu": not GPU,
    }
    if not o["mix"]:
        config["dataset_kwargs"] = {"skip_prepare_dataset": True}
    if WAY in ("published", "unsloth"):
        build = published if WAY == "published" else unsloth_peer
    else:
        import ours

        build = getattr(ours, WAY)
    trainer = build(CHECKPOINT, o, documents(), config, [clock])
    tokens, compute_loss = [], trainer.compute_loss

    def counted(model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        count = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        tokens.append((trainer.state.global_step, count))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    trainer.train()
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {"way": WAY, **o, "first_step_s": round(clock.seconds[0], 2)}
    found |= {"step_s": round(statistics.median(clock.seconds[o["warm"] :]), 4)}
    found |= {"loss_first": log[0], "loss_last": log[-1]}
    if GPU:
        found |= emulate.card()
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        found["ram_gib"] = round(memory.ram(), 2)
    if clock.prof:
        first, last = o["warm"] + 2, o["warm"] + 2 + o["prof"]
        seen = sum(count for step, count in tokens if first <= step < last)
        kinds: dict[str, float] = {}
        for event in clock.prof.key_averages():
            spent = event.self_device_time_total / 1e3 / o["prof"]
            kinds[emulate.kind_of(event.key)] = (
                kinds.get(emulate.kind_of(event.key), 0.0) + spent
            )
        total = sum(kinds.values())
        found["gpu_ms"] = round(total, 1)
        found["busy_ms"] = round(busy(clock.prof) / o["prof"], 1)
        found["tokens"] = round(seen / o["prof"])
        found["gpu_tokens_s"] = round(seen / o["prof"] / total * 1e3)
        found["kinds_ms"] = {k: round(v, 1) for k, v in kinds.items() if v}
    return found


if __name__ == "__main__":
    try:
        result = measure()
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        result = {"way": WAY, **OPTIONS, "out_of_memory": str(error)[:600]}
    print("SPEED", json.dumps(result), flush=True)
    emulate.append("speed.json", result)
