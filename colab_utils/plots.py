"""The pictures of the course: token lengths, trained tokens, memory, accuracy."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils import data
    from colab_utils.memory import Memory

GREY, BLUE, ORANGE = "#9ca3af", "#2563eb", "#f59e0b"
# The parts of `memory.Memory`, and their colours.
PARTS = {
    "weights": BLUE,
    "scales": "#93c5fd",
    "adapters": "#7c3aed",
    "gradients": ORANGE,
    "optimizer": "#10b981",
    "checkpoints": "#4b5563",
    "activations": GREY,
    "logits": "#f472b6",
    "working": "#fde047",
    "reserve": "#e5e7eb",
}


def _figure(height: float = 3) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # shown by being returned, not a second time at the cell's end
    return figure, axes


def token_lengths(lengths: list[int], limit: int) -> Figure:
    """Histogram of row lengths in tokens, with the limit and the share within it.

    The axis ends at twice the length that 99 % of the rows are within: the last bar
    counts what is longer, too, and says so.
    """
    figure, axes = _figure()
    longest, most = max(lengths), sorted(lengths)[99 * (len(lengths) - 1) // 100]
    end = min(longest, 2 * most)
    shown = [min(length, end) for length in lengths]
    axes.hist(shown, bins=min(60, end), range=(0, end), color=BLUE)
    if limit <= end:
        axes.axvline(limit, color=ORANGE)
    if longer := sum(length > end for length in lengths):
        told = f"{longer:,} longer,\nup to {longest:,} "
        where = axes.get_xaxis_transform()  # x in tokens, y a share of the height
        axes.text(end, 0.1, told, ha="right", transform=where)
    within = sum(length <= limit for length in lengths)
    axes.set_title(f"{within:,} of {len(lengths):,} rows within {limit} tokens")
    axes.set(xlabel="tokens a row", ylabel="rows")
    return figure


def trained_tokens(row: data.Row, tokenizer: Tokenizer) -> HTML:
    """One row as the model reads it, token by token; trained tokens are coloured."""
    from IPython.display import HTML

    out = tokenizer.apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    cells = []
    for token, trained in zip(
        tokenizer.convert_ids_to_tokens(out["input_ids"]),
        out["assistant_masks"],
        strict=True,
    ):
        colour = "#bbf7d0" if trained else "#f3f4f6"
        cells.append(
            f'<span style="background:{colour};color:#111;border-radius:3px;'
            f'padding:1px 3px;margin:1px;display:inline-block">{html.escape(token)}'
            "</span>"
        )
    share = f"{sum(out['assistant_masks'])} of {len(cells)} tokens are trained on"
    return HTML(
        f'<div style="font-family:monospace;line-height:1.9">{"".join(cells)}</div>'
        f"<div><small>green: {share}</small></div>"
    )


def memory(bars: dict[str, Memory], limit_gib: float | None = None) -> Figure:
    """Stacked bars of memory by component, one a method, against what the card has.

    The axis ends at twice the card's memory: a longer bar says only its number.
    """
    from colab_utils.memory import GIB

    figure, axes = _figure(height=0.6 * len(bars) + 1.6)
    largest = max(bar.total for bar in bars.values())
    unit, name = (GIB, "GiB") if largest > GIB else (2**20, "MiB")
    left = [0.0] * len(bars)
    for part, colour in PARTS.items():
        sizes = [getattr(bar, part) / unit for bar in bars.values()]
        if not any(sizes):
            continue
        axes.barh(list(bars), sizes, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    end = 1.12 * max(*left, (limit_gib or 0) * GIB / unit)
    if limit_gib is not None:
        end = min(end, 2 * limit_gib * GIB / unit)
    for y, total in enumerate(left):
        if total < 0.95 * end:
            axes.text(total, y, f" {total:.1f}", va="center")
        else:
            axes.text(end, y, f" → {total:.1f}", va="center")
    if limit_gib is not None:
        axes.axvline(limit_gib * GIB / unit, color="#dc2626", ls="--")
        axes.text(
            limit_gib * GIB / unit, -0.6, " the card", color="#dc2626", va="bottom"
        )
    axes.invert_yaxis()
    axes.set_xlabel(name)
    axes.set_xlim(0, end)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def accuracy(series: dict[str, dict[str, float]]) -> Figure:
    """Grouped bars of at most three series: {"before": {"capital": 0.0, ...}, ...}."""
    figure, axes = _figure()
    names = list(next(iter(series.values())))
    width = 0.8 / len(series)
    for i, (label, shares) in enumerate(series.items()):
        places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(names))]
        heights = [100 * shares[name] for name in names]
        bars = axes.bar(
            places, heights, width, label=label, color=[GREY, BLUE, ORANGE][i]
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylabel="exact match, %", ylim=(0, 112))
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    return figure
