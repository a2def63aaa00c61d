"""Measure notebook 07's training on text under a T4's limits: peak memory and time.

    python bench/raw_text.py [--tiny] [--out FILE]

Takes `build` out of notebooks/07_raw_completion.ipynb, and trains a model of random
weights in the shape of Llama 2 7B on texts of 1,024 tokens: first the adapter
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
from transformers import AutoConfig, TrainerCallback

from colab_utils.training.progress import LivePlot

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


class Clock(TrainerCallback):
    """Note when each update ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


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
    count = (1 + UPDATES) * plan.accumulation * (plan.tokens // length)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (count, length), generator=draw).tolist()
    mask = [0] + [1] * (length - 1)
    lora = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}
    if embeddings:
        lora["modules_to_save"] = ["embed_tokens", "lm_head"]
    nb |= {
        "rows": [{"input_ids": row, "assistant_masks": mask} for row in ids],
        **{"MODEL": str(folder), "lora": lora, "plan": plan, "GPU": on_gpu},
        **{"EPOCHS": 1, "LEARNING_RATE": 1e-4, "folder": folder.parent},
        "tokenizer": nb["models"].load_tokenizer("demo"),
    }
    trainer = nb["build"]()
    trainer.remove_callback(LivePlot)  # there may be no IPython
    trainer.add_callback(clock := Clock())
    memory.release()
    trainer.train()
    batches = UPDATES * plan.accumulation
    on_t4 = memory.seconds(config, "qlora", plan.tokens, plan.recompute, length)
    log = trainer.state.log_history
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "embeddings": embeddings,
        "plan": str(plan),
        "planned_gib": round(plan.cost.peak / memory.GIB, 2),
        "peak_gib": round(memory.peak(), 2) if on_gpu else None,
        "seconds_a_batch": round((clock.times[-1] - clock.times[0]) / batches, 3),
        "planned_seconds_on_a_t4": round(on_t4, 3),
        "losses": [round(entry["loss"], 3) for entry in log if "loss" in entry],
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
