"""Write the tables of docs/scale.md: which models fit how many T4s, and what it costs.

    python -m tools.scale_tables

All numbers are computed by `colab_utils.memory`, for QLoRA of rank 16 on the fast path.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from colab_utils import memory
from colab_utils.memory import costs
from colab_utils.shape import Shape

PAGE = Path("docs", "scale.md")
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
T4 = (14.56 - 0.3) * memory.GIB - costs.SHARED  # see `memory.budget`
RANK, TOKENS, RAM = 16, (2048, 1024, 512), 29e9  # Kaggle's RAM
GPUS = (1, 2, 4, 8)
UPDATES = (16384, 2400)  # tokens: long rows, and 16 rows of 150
# width, inner, layers, queries, keys
MODELS = {
    "Llama 2 7B": (4096, 11008, 32, 32, 32),
    "Llama 2 13B": (5120, 13824, 40, 40, 40),
    "Code Llama 34B": (8192, 22016, 48, 64, 8),
    "Llama 2 70B": (8192, 28672, 80, 64, 8),
}
# Bytes a second that a GPU sends to another.
WIRES = {
    "PCIe through RAM": costs.PCIE,
    "NVLink (H100)": 300e9,
    "Ethernet, 10 Gbit/s": 1.1e9,
    "InfiniBand, 100 Gbit/s": 11e9,
}


def shape(name: str) -> Shape:
    """Return the shape of a model of `MODELS`."""
    from transformers import AutoConfig

    width, inner, layers, heads, keys = MODELS[name]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=32000,
        max_position_embeddings=16384,
    )
    return Shape.from_config(config)


def fits() -> str:
    """Return which models fit how many T4s, with rows of how many tokens."""
    rows = ["| model | " + " | ".join(_t4s(n) for n in GPUS) + " |", "|---" * 5 + "|"]
    for name in MODELS:
        found = (_longest(shape(name), shards) for shards in GPUS)
        rows.append(f"| {name} | " + " | ".join(found) + " |")
    return "\n".join(rows) + "\n"


def _t4s(count: int) -> str:
    return "one T4" if count == 1 else f"{count} T4s"


def _longest(model: Shape, shards: int) -> str:
    """Return the peak with the longest of `TOKENS` that fit, or that none does."""
    for tokens in TOKENS:
        try:
            plan = memory.plan(
                model,
                "qlora",
                RANK,
                longest=tokens,
                update=tokens,
                budget=T4 + (costs.SHARED if shards == 1 else 0),
                ram=RAM,
                shards=shards,
            )
        except MemoryError:
            continue
        rows = "" if tokens == TOKENS[0] else f", rows of {tokens:,}"
        return f"{plan.cost.total / memory.GIB:.1f} GiB{rows}"
    return "no"


def wires() -> str:
    """Return the seconds that two GPUs need to exchange gradients, and weights."""
    rows = ["| | " + " | ".join(MODELS) + " |", "|---" * (len(MODELS) + 1) + "|"]
    models = [shape(name) for name in MODELS]
    for wire, speed in WIRES.items():
        cells = []
        for model in models:
            trained = memory.adapter_parameters(model, RANK)
            cells.append(_seconds(memory.exchange(trained, 2, 1.0, speed).seconds))
        rows.append(f"| gradients, {wire} | " + " | ".join(cells) + " |")
    for wire, speed in WIRES.items():
        cells = [_seconds(memory.gather_seconds(model, 2, speed)) for model in models]
        rows.append(f"| weights, {wire} | " + " | ".join(cells) + " |")
    times = (memory.seconds(m, "qlora", 2048, m.layers, 2048) for m in models)
    rows.append("| a T4 computes | " + " | ".join(map(_seconds, times)) + " |")
    return "\n".join(rows) + "\n"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def stop() -> str:
    """Return how many times as fast several T4s train Llama 2 7B as one T4 does."""
    columns = [(update, wire) for update in UPDATES for wire in ("PCIe", "Ethernet")]
    heads = " | ".join(f"{update:,} tokens, {wire}" for update, wire in columns)
    rows = [f"| GPUs | {heads} |", "|---" * (len(columns) + 1) + "|"]
    speeds = {re.split(r"\W", wire)[0]: speed for wire, speed in WIRES.items()}
    for gpus in GPUS[1:]:
        times = (_times(gpus, update, speeds[wire]) for update, wire in columns)
        rows.append(f"| {gpus} | " + " | ".join(f"{one:.1f}" for one in times) + " |")
    return "\n".join(rows) + "\n"


def _times(gpus: int, update: int, speed: float) -> float:
    """Return the time of an update on one T4, divided by that on several."""
    model = shape("Llama 2 7B")
    trained = memory.adapter_parameters(model, RANK)
    alone, share = _computing(model, update), _computing(model, update / gpus)
    return alone / (share + memory.exchange(trained, gpus, share, speed).seconds)


def _computing(model: Shape, tokens: float) -> float:
    """Return the seconds for these tokens, in micro-batches of up to 2,048."""
    parts = math.ceil(tokens / 2048)
    return parts * memory.seconds(model, "qlora", round(tokens / parts), 0, 512)


TABLES = {"fits": fits, "wires": wires, "stop": stop}


def fill(page: str) -> str:
    """Return the page with its tables computed anew."""
    return TABLE.sub(lambda one: one[1] + TABLES[one[2]]() + one[3], page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
