"""Measure notebook 05's QLoRA by hand under a T4's limits: peak memory and bytes kept.

    python bench/by_hand.py [--tiny]

Takes the definitions out of notebooks/05_nano_lora.ipynb, and trains a model of random
weights in the shape of Llama 2 7B on rows of 150 tokens. Prints the plan of the
notebook next to what was measured, and writes bench/results/by_hand.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from transformers import AutoConfig

NOTEBOOK = HERE.parent / "notebooks" / "05_nano_lora.ipynb"
LEFT_OUT = "matplotlib"
KEPT = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
CONSTANTS = {"LEVELS", "MIDPOINTS", "PAIRS", "BLOCK", "LINEARS", "levels"}


def definitions() -> dict:
    """Return what the notebook imports and defines."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"][1:]
    names: dict = {"RANK": 16}
    for node in ast.parse("\n".join(code)).body:
        targets = {
            t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)
        }
        if LEFT_OUT in ast.unparse(node) and isinstance(node, KEPT[2:]):
            continue
        if isinstance(node, KEPT) or targets & CONSTANTS:
            exec(compile(ast.Module([node], []), str(NOTEBOOK), "exec"), names)
    return names


def main() -> None:
    """Train for three updates, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "by_hand.json")
    options = parser.parse_args()
    on_gpu = emulate.t4()
    nb = definitions()
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    if options.tiny:
        sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", **sizes)
    longest = 150
    nb["SIZE"] = 2 if on_gpu else 4
    with tempfile.TemporaryDirectory() as folder:
        emulate.random_model(config, Path(folder, "model"))
        torch.cuda.empty_cache()
        quantized = nb["models"].quantization_config()
        model = nb["models"].load_model(str(Path(folder, "model")), quantized)
    nb["swap"](model, lambda path, layer: nb["take_over"](layer))
    nb["inject"](model, 16, alpha=32)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (64, longest), generator=draw).tolist()
    rows = [{"input_ids": row, "assistant_masks": [0] * 100 + [1] * 50} for row in ids]
    budget = (14.56 - 0.3) * 2**30
    at_once, planned, _ = nb["rows_at_once"](config, longest, budget)
    nb["AT_ONCE"] = at_once
    shape = nb["Shape"].from_config(config)
    predicted = nb["activation_bytes"](
        shape, 16, nb["SIZE"], 4 * longest, sum(50 for _ in range(4))
    )
    if nb["SIZE"] == 2:
        predicted += 2 * nb["memory"].adapter_parameters(config, 16)
    kept = nb["kept_bytes"](model, lambda: nb["loss_sum"](model, rows[:4]))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    losses = nb["train"](model, rows, 3, 2e-4, size=16, seed=0, pool=1)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / 3
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    moved = sum(
        float(w.abs().sum()) > 0 for n, w in model.named_parameters() if ".B" in n
    )
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "rows_at_once": at_once,
        "planned_gib": round(planned, 2),
        "peak_gib": peak and round(peak, 2),
        "activations_measured_over_predicted": round(kept / predicted, 4),
        "seconds_an_update_of_16_rows": round(seconds, 2),
        "losses": [round(loss, 3) for loss in losses],
        "adapters_that_moved": moved,
    }
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
