"""Measure notebook 07's training on text under a T4's limits: peak memory and time.

    python bench/raw_text.py [--tiny] [--out FILE]

Takes the definitions out of notebooks/07_raw_completion.ipynb, and trains a model of
random weights in the shape of Llama 2 7B on texts of 1,024 tokens: first the adapter
alone, then also embeddings and head. Writes what the plan predicts next to what was
measured, by default to bench/results/raw_text.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from transformers import AutoConfig

NOTEBOOK = HERE.parent / "notebooks" / "07_raw_completion.ipynb"
KEPT = (ast.FunctionDef, ast.Import, ast.ImportFrom)
RANK, UPDATES = 64, 2
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
TINY = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def definitions() -> dict[str, Any]:
    """Return what the notebook imports and defines."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"][1:]
    names: dict[str, Any] = {"SEED": 0, "ATTENTION": [], "MLP": []}
    for node in ast.parse("\n".join(code)).body:
        if isinstance(node, KEPT) and "matplotlib" not in ast.unparse(node):
            exec(compile(ast.Module([node], []), str(NOTEBOOK), "exec"), names)
    return names


def adapted(nb: dict[str, Any], folder: Path, embeddings: bool) -> torch.nn.Module:
    """Return the model in 4 bits with the adapter of the notebook."""
    model = nb["models"].load_model(str(folder), nb["models"].quantization_config())
    lora = nb["LoraConfig"](
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules="all-linear",
        modules_to_save=["embed_tokens", "lm_head"] if embeddings else None,
        task_type="CAUSAL_LM",
    )
    model = nb["get_peft_model"](model, lora)
    for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
        weight.data = weight.data.float()
    return model


def measure(
    nb: dict[str, Any], folder: Path, embeddings: bool, length: int
) -> dict[str, Any]:
    """Train for some updates; return the plan next to what was measured."""
    memory, on_gpu = nb["memory"], torch.cuda.is_available()
    config = AutoConfig.from_pretrained(folder)
    plan = memory.plan(
        config,
        "qlora",
        RANK,
        longest=length,
        update=8 * length,
        budget=(14.56 - 0.3) * memory.GIB,
        gpu=on_gpu,
        optimizer="adamw_8bit" if on_gpu else "adamw_torch",
        embeddings=embeddings,
    )
    model = adapted(nb, folder, embeddings)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (64, length), generator=draw).tolist()
    rows = [
        {"input_ids": row, "assistant_masks": [0] + [1] * (length - 1)} for row in ids
    ]
    how = {"size": plan.tokens, "times": plan.accumulation, "rate": 1e-4}
    how |= {"plan": (plan.recompute, plan.offload)}
    how |= {"adam": nb["AdamW8bit"] if on_gpu else None}
    nb["train"](model, rows, tokens=1, **how)  # compiles the kernels
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    count = UPDATES * (plan.tokens // length) * length * plan.accumulation
    losses = nb["train"](model, rows, tokens=count - 1, **how)
    seconds = (time.perf_counter() - start) / len(losses)
    peak = torch.cuda.max_memory_allocated() / memory.GIB if on_gpu else None
    on_t4 = memory.seconds(config, "qlora", plan.tokens, plan.recompute, length)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "embeddings": embeddings,
        "plan": str(plan),
        "planned_gib": round(plan.cost.peak / memory.GIB, 2),
        "peak_gib": peak and round(peak, 2),
        "seconds_a_batch": round(seconds, 3),
        "planned_seconds_on_a_t4": round(on_t4, 3),
        "losses": [round(loss, 3) for loss in losses[:4]],
    }


def main() -> None:
    """Measure both kinds of training, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "raw_text.json")
    options = parser.parse_args()
    emulate.t4()
    config = AutoConfig.for_model("llama", **(TINY if options.tiny else SEVEN_B))
    nb, found, length = definitions(), [], 64 if options.tiny else 1024
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        emulate.random_model(config, folder)
        for embeddings in (False, True):
            nb["memory"].release()
            found.append(measure(nb, folder, embeddings, length))
            print(json.dumps(found[-1], indent=1), flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
