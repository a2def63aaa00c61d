"""Draw bench/results/figure.png: GPU time by kind of kernel, and peak memory."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
# For each kind of kernel in the results: its name in the figure and its color.
KINDS = {
    "products": ("matrix products", "#2563eb"),
    "attention": ("attention", "#f59e0b"),
    "unpacking": ("dequantizing", "#10b981"),
    "other": ("other", "#9ca3af"),
    "copies": ("copies", "#f472b6"),
}


def name(row: dict) -> str:
    """Return the label of a measured setup."""
    if row["way"] == "unsloth":
        default = row["gc"] == "unsloth"
        return "Unsloth, default" if default else "Unsloth, no checkpointing"
    names = {"fast": "fast path", "lean": "fast path, least memory"}
    names["plain"] = "transformers + PEFT"
    names["published"] = "the published notebook"
    return names[row["way"]]


def main() -> None:
    """Draw the figure of the last results."""
    rows = json.loads((RESULTS / "speed.json").read_text())
    rows = [r for r in rows if "gpu_ms" in r and (r["mix"], r["seq"]) == (1, 2048)]
    rows = [r for r in rows if r["r"] == 16 or r["way"] == "published"]
    rows.sort(key=lambda row: -row["gpu_ms"])
    labels = [name(row) for row in rows]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.5 * len(rows) + 1.6), sharey=True, layout="constrained"
    )
    start = [0.0] * len(rows)
    for kind, (label, color) in KINDS.items():
        sizes = [row["kinds_ms"].get(kind, 0.0) for row in rows]
        left.barh(labels, sizes, left=start, color=color, label=label)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    for y, row in enumerate(rows):
        left.text(row["gpu_ms"], y, f" {int(row['gpu_ms'] + 0.5)}", va="center")
        right.text(row["peak_gib"], y, f" {row['peak_gib']:.1f}", va="center")
    right.barh(labels, [row["peak_gib"] for row in rows], color="#2563eb")
    right.axvline(14.2, color="#dc2626", ls="--")
    left.set(xlabel=f"GPU ms for 2,048 tokens ({rows[0]['card']})")
    right.set(xlabel="peak, GiB allocated (the line: what a T4 leaves)")
    left.set_xlim(0, 1.12 * max(start))
    right.set_xlim(0, 15.5)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(RESULTS / "figure.png", dpi=110)


if __name__ == "__main__":
    main()
