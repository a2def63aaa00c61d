"""Measure FSDP-QLoRA of TRL, PEFT and bitsandbytes, as their documentation sets it up.

    torchrun --nproc-per-node 2 bench/rivals/fsdp.py FOLDER [VERSION]

FOLDER gets the shape of Llama 2 7B in bfloat16 with random weights. Each process trains
rows of 2,048 random tokens, as bench/sharded.py does: NF4 weights that are stored as
bfloat16, so that FSDP can shard them, an adapter of rank 16, activation checkpointing.
Each GPU is limited to a T4's memory and attention kernels; the dtype is bfloat16, which
a T4 lacks, as the recipe fails in float16. VERSION is that of FSDP, 2 or 1. Prints a
row, and adds it to bench/results/sharded.json. Without a GPU this is a dry run on a
tiny shape without FSDP, which
writes nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import emulate
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.utils.other import fsdp_auto_wrap_policy
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from colab_utils import models

GPU = torch.cuda.is_available()
TOKENS, WARM, STEPS = (2048 if GPU else 64), 2, 10
TINY = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Clock(TrainerCallback):
    """Note when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if GPU:
            torch.cuda.synchronize()
            if state.global_step == WARM:
                torch.cuda.reset_peak_memory_stats()
        self.times.append(time.perf_counter())


def main() -> None:
    folder, version = Path(sys.argv[1]), int((*sys.argv[2:], 2)[0])
    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if GPU:
        torch.cuda.set_device(rank)
    config = LlamaConfig(intermediate_size=11008, max_position_embeddings=4096)
    config.update({} if GPU else TINY)
    if not (folder / "config.json").exists():
        if rank == 0:
            part = folder.with_suffix(".part")
            torch.manual_seed(0)
            with torch.device("cuda" if GPU else "cpu"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(part, max_shard_size="5GB")
            del model
            part.rename(folder)
            if GPU:
                torch.cuda.empty_cache()
        while not folder.exists():
            time.sleep(0.5)
    emulate.limit()
    set_seed(0)
    began = time.time()
    draw = torch.Generator().manual_seed(0)
    shape = (world * (WARM + STEPS), TOKENS)
    ids = torch.randint(3, config.vocab_size, shape, generator=draw).tolist()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_quant_storage=torch.bfloat16,
            ),
        ),
        args=SFTConfig(
            output_dir=str(folder.parent / "out"),
            per_device_train_batch_size=1,
            max_steps=WARM + STEPS,
            learning_rate=2e-4,
            max_length=TOKENS,
            bf16=True,
            fsdp=GPU,
            fsdp_config={
                "version": version,
                "activation_checkpointing": True,
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                "cpu_ram_efficient_loading": False,
            }
            | ({"use_orig_params": False} if version == 1 else {}),
            gradient_checkpointing=False,
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not GPU,
            disable_tqdm=True,
            dataloader_pin_memory=GPU,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
        processing_class=models.load_tokenizer("demo"),
        peft_config=LoraConfig(
            r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    if GPU and version == 1:  # whose units must be trained, or not, as a whole
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.auto_wrap_policy = fsdp_auto_wrap_policy(trainer.model)
    clock = Clock()
    trainer.add_callback(clock)
    found = {"load_s": round(time.time() - began, 1)}
    trainer.train()
    steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found |= {"step_s": round(statistics.median(steps[WARM:]), 4), "losses": losses}
    found["tokens_s"] = round(world * TOKENS / found["step_s"])
    if GPU:
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        found |= emulate.card()
    row = {"part": f"7B, FSDP{version} of TRL", "gpus": world, "tokens": TOKENS}
    row |= found
    if rank == 0:
        print("SHARDED", json.dumps(row), flush=True)
        if GPU:
            emulate.append("sharded.json", row)


if __name__ == "__main__":
    main()
