"""Measure the memory of loading a model in 4 bits.

    python bench/loading.py MODEL [SAVE_TO]

MODEL is a folder. With SAVE_TO, the 4-bit model is saved there, so that a second run
can measure how it loads. Adds a row to bench/results/loading.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from sampling import Sampler

from colab_utils import models, runtime

GPU = emulate.t4()
runtime.quiet()


def saved_as_4_bits(name: str) -> bool:
    """Return whether the folder holds a model that is already quantized."""
    config = json.loads((Path(name) / "config.json").read_text())
    return "quantization_config" in config


def load(name: str):
    """Load the model, and print time and memory."""
    torch.zeros(1, device="cuda" if GPU else "cpu")  # CUDA's own memory does not count
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with Sampler() as sampler:
        model = models.load_model(name, models.quantization_config())
    found = {"quantised_before": saved_as_4_bits(name), **sampler.result()}
    if GPU:
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        found["held_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
        found |= emulate.card()
    print("LOADING", json.dumps(found), flush=True)
    emulate.append("loading.json", found)
    return model


if __name__ == "__main__":
    model = load(sys.argv[1])
    if len(sys.argv) > 2:
        model.save_pretrained(sys.argv[2])
