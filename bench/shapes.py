"""Measure a training step of several models' shapes, beside Unsloth.

    python bench/shapes.py [tiny] [NAME ...]

For each shape: write random weights, train on the fast path with as few checkpointed
layers as fit a T4, compare the planned with the measured peak, and train the same rows
with Unsloth if UNSLOTH_PATH names a folder with its packages. Adds rows to
bench/results/shapes.json. `tiny` tests the script on a CPU and writes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from transformers import AutoConfig

from colab_utils import memory, models
from colab_utils.memory import costs
from colab_utils.memory.planning import save_memory
from colab_utils.memory.step import Step
from colab_utils.shape import Shape

TOKENS, RANK = 2048, 16
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# By name: transformers' model type, and the sizes of the published config.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3.2 3B": (
        "llama",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA_3 | {"factor": 32.0},
        },
    ),
    "Llama 3.1 8B": (
        "llama",
        {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "rope_parameters": LLAMA_3 | {"factor": 8.0},
        },
    ),
    "Mistral 7B v0.3": (
        "mistral",
        {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "sliding_window": None,
        },
    ),
    "Qwen2.5 7B": (
        "qwen2",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3 4B": (
        "qwen3",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3 8B": (
        "qwen3",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
    ),
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
}


def config_of(name: str, tiny: bool) -> Any:
    """Return the config of a shape."""
    kind, sizes = SHAPES[name]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    positions = {"max_position_embeddings": 32768}
    return AutoConfig.for_model(
        kind, **sizes | ids | positions | (TINY if tiny else {})
    )


def plan(config: Any) -> Step:
    """Return the step with the fewest checkpointed layers that fit a T4."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0):
        costs.CUBLAS = 2 * 32 * 2**20
    step = Step(
        Shape.from_config(config),
        "qlora",
        RANK,
        TOKENS,
        fast=True,
        optimizer="adamw_8bit",
    )
    return save_memory(step, emulate.CAP * memory.GIB)


def speed(way: str, folder: str, path: str | None = None, **keys: Any) -> dict | None:
    """Run `speed.py` in a process of its own and return its row."""
    command = [sys.executable, str(HERE / "speed.py"), way, folder, f"r={RANK}"]
    command += [f"{key}={value}" for key, value in keys.items()]
    env = os.environ | ({"PYTHONPATH": path} if path else {})
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    lines = [one for one in run.stdout.splitlines() if one.startswith("SPEED ")]
    return json.loads(lines[-1].removeprefix("SPEED ")) if lines else None


def measure(name: str, tiny: bool) -> None:
    """Measure one shape and write its rows."""
    config = config_of(name, tiny)
    step, started = plan(config), time.time()
    folder = Path(tempfile.mkdtemp()) / "model"
    emulate.random_model(config, folder)
    models.load_tokenizer("demo").save_pretrained(folder)
    small = {"steps": 3, "seq": 64} if tiny else {}
    ways: list[tuple[str, str | None, dict[str, Any]]] = [
        ("fast", None, {"recompute": step.recompute})
    ]
    if path := os.environ.get("UNSLOTH_PATH"):
        ways += [("unsloth", path, {"gc": gc}) for gc in ("false", "unsloth")]
    row: dict[str, Any] | None = None
    for way, path, keys in ways:
        if keys.get("gc") == "unsloth" and "gpu_tokens_s" in (row or {}):
            continue  # without checkpointing it fits, and is faster
        row = speed(way, str(folder), path, **keys, **small)
        row = {"shape": name, **(row or {"way": way, **keys, "failed": True})}
        if way == "fast":
            # Unlike a T4's, this card's attention kernel accumulates one gradient.
            here = replace(step, accumulators=1).peak()
            row["planned_gib"] = round(here.peak / memory.GIB, 2)
        print("SHAPE", json.dumps(row), flush=True)
        if not tiny:
            emulate.append("shapes.json", row)
    shutil.rmtree(folder.parent)
    print(f"{name}: {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    tiny = "tiny" in arguments
    for name in [one for one in arguments if one != "tiny"] or SHAPES:
        measure(name, tiny)
