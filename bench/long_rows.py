"""Train on rows that fill a T4, and compare the planned with the measured memory.

    python bench/long_rows.py FOLDER [--model 7B] [--rank 16] [--kinds single mixed]
        [--tokens 4096 8192 12288 16384] [--tiny]

For each number of tokens: plan a step on one packed row for a T4, then train on rows
of one document each ("single") and of many documents ("mixed"). FOLDER is a checkpoint;
if it does not exist, random 4-bit weights of a model of MODELS are written there.
Prints a line for each run: the plan, tensors and memory reserved at the peak, RAM, GPU
time; where the GPU runs out of memory, the holes in torch's cache. `--tiny` tests the
script on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import ours
import torch
from datasets import Dataset
from shapes import SHAPES
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, TrainerCallback
from trl import SFTConfig

from colab_utils import memory, models, training
from colab_utils.training.sft import FastSFTTrainer

GPU = torch.cuda.is_available()
EIGHT = SHAPES["Llama 3.1 8B"][1] | {"max_position_embeddings": 131072}
MODELS = emulate.LLAMA_2 | {"8B": EIGHT}
TINY = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
# GiB beyond the planned tensors that torch may take; without it, a T4's memory.
RESERVE = os.environ.get("RESERVE")


class Clock(TrainerCallback):
    """Sums the GPU time of the last steps by kind of kernel."""

    def __init__(self, steps: int) -> None:
        self.steps, self.profiled = steps, max(1, steps // 2)
        self.prof: Any = None
        self.reserved: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if GPU and state.global_step == self.steps - self.profiled:
            self.prof = profile(activities=[ProfilerActivity.CUDA])
            self.prof.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
            self.reserved.append(round(torch.cuda.memory_reserved() / 2**30, 2))
        if self.prof and state.global_step == self.steps:
            self.prof.__exit__(None, None, None)


def rows(kind: str, tokens: int, words: int, count: int) -> Dataset:
    """Return `count` rows of about `tokens` tokens: of one document, or of many."""
    draw = torch.Generator().manual_seed(0)
    lengths = [tokens] * count
    if kind == "mixed":
        noise = torch.randn(count * tokens // 120, generator=draw)
        lengths = (noise * 0.8 + 5).exp().clamp(16, min(1024, tokens)).long().tolist()
    ids = [torch.randint(3, words - 1, (n,), generator=draw).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": ids})


def holes() -> dict[str, Any]:
    """Return the free blocks in torch's cache by size, in MiB, and the layout."""
    found: dict[str, Any] = {"small": 0.0, "medium": 0.0, "large": 0.0, "layout": ""}
    for segment in torch.cuda.memory_snapshot():
        if segment["segment_type"] != "large":
            continue
        found["expandable"] = segment["is_expandable"]
        for block in segment["blocks"]:
            size = block["size"] / 2**20
            free = block["state"] == "inactive"
            found["layout"] += f"{'-' if free else '+'}{size:.0f} "
            if free:
                kind = "small" if size < 20 else "medium" if size < 100 else "large"
                found[kind] += size
    return found


def measure(base: Any, config: Any, rank: int, kind: str, tokens: int) -> dict:
    """Plan, train, and return the numbers."""
    given = {"gpu": GPU, "optimizer": "adamw_8bit" if GPU else "adamw_torch"}
    plan = memory.plan(
        config,
        "qlora",
        rank,
        longest=tokens,
        update=tokens,
        budget=emulate.CAP * memory.GIB,
        **given,
    )
    # Unlike a T4's, the attention kernel of this card accumulates one gradient.
    given |= {"recompute": plan.recompute, "offload": plan.offload, "fast": True}
    given |= {"tiles": plan.tiles, "disk": plan.disk}
    here = memory.estimate(config, "qlora", rank, tokens, accumulators=1, **given).peak
    steps = 8 if tokens <= 8192 else 4 if tokens <= 16_384 else 2
    steps = 1 if tokens > 50_000 and kind == "single" else steps  # minutes each
    clock = Clock(steps)
    trainer = FastSFTTrainer(
        model=base,
        processing_class=models.load_tokenizer("demo"),
        train_dataset=rows(kind, tokens, config.vocab_size, steps),
        callbacks=[clock],
        peft_config=ours.lora(rank),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=1,
            max_steps=steps,
            max_length=tokens,
            packing=True,
            gradient_checkpointing=False,
            optim=given["optimizer"],
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not GPU,
            **training.precision(),
        ),
    )
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, plan)
    trainer.recovery.used = True  # another plan would hide what this one needs
    found = {"kind": kind, "tokens": tokens, "rank": rank}
    found |= {"recompute": plan.recompute}
    found |= {"offload": plan.offload, "total_on_t4": plan.cost.total / memory.GIB}
    found |= {"tiles": plan.tiles, "inputs_on_disk": plan.disk}
    found |= {"planned_ram": plan.cost.ram / memory.GIB}
    found |= {"planned_disk": plan.cost.disk / memory.GIB}
    found |= {"planned_on_t4": plan.cost.peak / memory.GIB}
    found["planned"] = here / memory.GIB
    found = {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}
    if GPU and RESERVE:
        card = torch.cuda.get_device_properties(0).total_memory
        limit = here + float(RESERVE) * memory.GIB
        torch.cuda.set_per_process_memory_fraction(limit / card)
    if GPU:
        memory.release()
    try:
        trainer.train()
        log = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        found |= {"loss": log[-1]}
    except MemoryError as error:
        found["out_of_memory"] = str(error)[:500]
    if GPU:
        found["allocated"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        found["after_steps"] = clock.reserved
        found["expandable"] = holes().get("expandable")
        found["ram"] = round(memory.ram(), 2)
        if clock.prof and "loss" in found:
            kinds: dict[str, float] = {}
            for event in clock.prof.key_averages():
                spent = event.self_device_time_total / 1e3 / clock.profiled
                name = emulate.kind_of(event.key)
                kinds[name] = kinds.get(name, 0.0) + spent
            found["gpu_ms"] = round(sum(kinds.values()), 1)
            found["kinds_ms"] = {k: round(v, 1) for k, v in kinds.items()}
    training.use_reference_path(trainer)
    trainer.model.unload()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="7B")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=["single", "mixed"])
    usual = [4096, 8192, 12288, 16384]
    parser.add_argument("--tokens", nargs="+", type=int, default=usual)
    parser.add_argument("--tiny", action="store_true")
    o = parser.parse_args()
    if not o.folder.exists():
        shape = LlamaConfig(**MODELS[o.model] | (TINY if o.tiny else {}))
        torch.multiprocessing.spawn(emulate.random_4bit, (shape, o.folder), nprocs=1)
    emulate.t4()
    config = models.load_config(str(o.folder))
    base = models.load_model(str(o.folder), models.quantization_config())
    last: dict[str, Any] = {}
    if GPU:
        torch._C._cuda_attach_out_of_memory_observer(
            lambda *_: last.update(holes=holes())
        )
    for tokens in o.tokens:
        for kind in o.kinds:
            last.clear()
            gc.collect()
            if GPU:
                torch.cuda.empty_cache()
            began = time.time()
            found = {"model": o.model}
            found |= measure(base, config, o.rank, kind, tokens)
            found["seconds"] = round(time.time() - began, 1)
            print("LONG", json.dumps(found | last), flush=True)


if __name__ == "__main__":
    main()
