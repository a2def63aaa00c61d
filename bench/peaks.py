"""Compare predicted and measured peak memory of training.

    python bench/peaks.py [tiny]

The runs vary shape, rank, length and method. This needs a GPU and writes
bench/results/peaks.json. `tiny` tests the script on a CPU, measures no peak and writes
nothing. Each row is a run of three steps of TRL's trainer; the peak is that of the last
two.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, TrainerCallback
from trl import SFTConfig

from colab_utils import memory, models, runtime, training
from colab_utils.memory import costs
from colab_utils.training.sft import FastSFTTrainer

GPU = emulate.t4()
if GPU and torch.cuda.get_device_capability() >= (9, 0):
    costs.CUBLAS = 2 * 32 * 2**20
runtime.quiet()
SHAPES = {
    "7B": {},
    "GQA, 8 layers": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "num_hidden_layers": 8,
        "vocab_size": 128256,
    },
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7B, 3 layers": {"num_hidden_layers": 3},
}
# shape, method, rank, tokens, recompute, offload, fast, accumulation
RUNS = [
    ("1.1B", "qlora", 16, 2048, 0, 0, True, 1),
    ("1.1B", "lora", 16, 2048, 0, 0, True, 1),
    ("1.1B", "lora", 64, 4096, 8, 0, True, 2),
    ("1.1B", "lora", 16, 1024, 0, 0, False, 1),
    ("GQA, 8 layers", "qlora", 16, 2048, 0, 0, True, 1),
    ("GQA, 8 layers", "lora", 32, 2048, 8, 0, True, 1),
    ("7B, 3 layers", "full", 16, 512, 0, 0, False, 1),
    ("7B, 3 layers", "full", 16, 2048, 3, 0, False, 1),
    ("7B", "qlora", 16, 2048, 0, 0, True, 1),
    ("7B", "qlora", 16, 2048, 8, 0, True, 1),
    ("7B", "qlora", 16, 2048, 16, 0, True, 1),
    ("7B", "qlora", 16, 2048, 32, 0, True, 1),
    ("7B", "qlora", 16, 2048, 32, 32, True, 1),
    ("7B", "qlora", 64, 2048, 0, 0, True, 1),
    ("7B", "qlora", 64, 1024, 0, 0, True, 2),
    ("7B", "qlora", 8, 512, 0, 0, True, 1),
    ("7B", "qlora", 32, 1024, 8, 0, True, 1),
    ("7B", "qlora", 16, 4096, 16, 0, True, 1),
    ("7B", "qlora", 64, 4096, 32, 0, True, 1),
    ("7B", "qlora", 64, 512, 32, 0, True, 1),
    ("7B", "qlora", 16, 1024, 0, 0, False, 1),
    ("7B", "qlora", 16, 2048, 32, 0, False, 1),
]


class Peak(TrainerCallback):
    """Measures the first step separately, because it creates the optimizer's states."""

    first = 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1 and GPU:
            self.first = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()


def checkpoint_of(name: str, tiny: bool, folder: Path) -> tuple[str, LlamaConfig]:
    """Save a model of this shape with random weights; return its folder and config."""
    usual = {"max_position_embeddings": 4096, "num_attention_heads": 32}
    config = LlamaConfig(
        **{**usual, **SHAPES[name]}, architectures=["LlamaForCausalLM"]
    )
    if tiny:
        heads = config.num_attention_heads
        config.hidden_size, config.intermediate_size, config.vocab_size = 512, 640, 1024
        config.head_dim = 512 // heads
        config.num_hidden_layers = 3
    path = folder / name.replace(" ", "-")
    if name == "7B" and os.environ.get("LLAMA_7B"):  # run.py has saved this model
        path = Path(os.environ["LLAMA_7B"])
    emulate.random_model(config, path)
    return str(path), config


def load(path: str, method: str):
    """Load the model with `models.load_model`; full fine-tuning holds it in float32."""
    model = models.load_model(
        path, models.quantization_config() if method == "qlora" else None
    )
    return model.float() if method == "full" else model


def measure(base, config: LlamaConfig, run: tuple) -> dict:
    """Train three steps, and return the peak memory; restore the base model."""
    name, method, rank, tokens, recompute, offload, fast, times = run
    tokens = tokens if GPU else tokens // 32
    rows = torch.randint(3, config.vocab_size, (3 * times, tokens)).tolist()
    lora = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear")
    lora.task_type = "CAUSAL_LM"
    trainer = FastSFTTrainer(
        model=base,
        processing_class=models.load_tokenizer("demo"),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        callbacks=[peak := Peak()],
        peft_config=None if method == "full" else lora,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=times,
            max_steps=3,
            max_length=tokens,
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=False,
            optim="adamw_8bit" if GPU else "adamw_torch",
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not GPU,
            **training.precision(),
        ),
    )
    training.float32_adapters(trainer)
    cost = memory.estimate(
        config,
        method,
        rank,
        tokens,
        recompute=recompute,
        offload=offload,
        fast=fast,
        accumulating=times > 1,
        gpu=GPU,
        optimizer="adamw_8bit" if GPU else "adamw_torch",
        accumulators=1,  # unlike a T4's, this card's attention kernel needs no more
        packed=False,
    )
    plan = memory.Plan(tokens, times, recompute, offload, fast, cost)
    training.use_fast_path(trainer, plan)
    trainer.recovery.used = True  # another plan would hide what this one needs
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {"shape": name, "config": SHAPES[name]}
    found |= {"method": method, "rank": rank, "tokens": tokens}
    found |= {"recompute": recompute, "offload": offload, "fast": fast, "times": times}
    found |= {"predicted": cost.peak / memory.GIB, "parts": cost.as_gib()}
    found["losses"] = losses
    if GPU:
        found["measured_first"] = peak.first / memory.GIB
        found["measured"] = torch.cuda.max_memory_allocated() / memory.GIB
        found["reserved"] = torch.cuda.max_memory_reserved() / memory.GIB
        found["off"] = found["predicted"] / found["measured"] - 1
    # bitsandbytes keeps references to the embeddings of every model that it trained.
    training.use_reference_path(trainer)
    if method != "full":
        trainer.model.unload()
    return found


def main() -> None:
    tiny = "tiny" in sys.argv[1:]
    results, loaded, base = [], None, None
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            if run[:2] != loaded:
                base = None
                gc.collect()
                path, config = checkpoint_of(run[0], tiny, Path(folder))
                base, loaded = load(path, run[1]), run[:2]
            if GPU:
                gc.collect()
                torch.cuda.empty_cache()
            start = time.time()
            try:
                results.append(measure(base, config, run))
            except (MemoryError, torch.cuda.OutOfMemoryError) as error:
                base = loaded = None
                results.append({"run": run, "out_of_memory": str(error)[:120]})
            results[-1]["seconds"] = round(time.time() - start, 1)
            shown = {k: v for k, v in results[-1].items() if k != "parts"}
            print("PEAK", json.dumps(shown), flush=True)
            if not tiny:
                (emulate.RESULTS / "peaks.json").write_text(
                    json.dumps(results, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
