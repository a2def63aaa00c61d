"""The figures of the course: data, memory, accuracy, calibration, selections."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils import data
    from colab_utils.data.curation.selection import Vectors
    from colab_utils.memory import Memory

GRAY, BLUE, ORANGE, RED = "#9ca3af", "#2563eb", "#f59e0b", "#dc2626"
LIGHT_GREEN, LIGHT_GRAY = "#bbf7d0", "#f3f4f6"
SERIES_COLORS = (GRAY, BLUE, ORANGE)
# One color for each field of `memory.Memory`.
MEMORY_COLORS = {
    "weights": BLUE,
    "scales": "#93c5fd",
    "adapters": "#7c3aed",
    "gradients": ORANGE,
    "optimizer": "#10b981",
    "checkpoints": "#4b5563",
    "activations": GRAY,
    "logits": "#f472b6",
    "working": "#fde047",
    "reserve": "#e5e7eb",
}
MIB = 2**20


def _figure(height: float = 3) -> tuple[Figure, Axes]:
    """Return a figure of 7 inches by `height`, and its axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # the cell shows what it returns; an open figure appears twice
    return figure, axes


def token_lengths(lengths: list[int], limit: int) -> Figure:
    """Return a histogram of tokens per row, with `limit` and the share of rows within.

    The axis ends at twice the 99th percentile. The last bar also counts longer rows,
    and a label gives their number.
    """
    figure, axes = _figure()
    longest = max(lengths)
    percentile_99 = sorted(lengths)[99 * (len(lengths) - 1) // 100]
    end = min(longest, 2 * percentile_99)
    shown = [min(length, end) for length in lengths]
    axes.hist(shown, bins=min(60, end), range=(0, end), color=BLUE)
    if limit <= end:
        axes.axvline(limit, color=ORANGE)
    if longer := sum(length > end for length in lengths):
        label = f"{longer:,} longer,\nup to {longest:,} "
        # x in tokens, y as a share of the height
        transform = axes.get_xaxis_transform()
        axes.text(end, 0.1, label, ha="right", transform=transform)
    within = sum(length <= limit for length in lengths)
    axes.set_title(f"{within:,} of {len(lengths):,} rows within {limit} tokens")
    axes.set(xlabel="tokens per row", ylabel="rows")
    return figure


def trained_tokens(row: data.Row, tokenizer: Tokenizer) -> HTML:
    """Return the tokens of a row as HTML, with those that are trained on in green.

    A preference row has a block for each of its answers, and a text to classify has its
    label below. `▁` is a space and `↵` a newline. A token that holds a part of a
    character is shown as the vocabulary writes it.
    """
    from IPython.display import HTML

    from colab_utils import data

    found = data.encodings(row, tokenizer)
    titles = ["chosen: ", "rejected: "] if len(found) == 2 else [""]
    blocks = [
        _token_block(tokens, tokenizer, title)
        for title, tokens in zip(titles, found, strict=True)
    ]
    if "label" in row:
        blocks.append(f"<div>label: <b>{html.escape(row['label'])}</b></div>")
    return HTML("".join(blocks))


def _token_block(tokens: data.Tokens, tokenizer: Tokenizer, title: str) -> str:
    """Return the tokens of one sequence as HTML, and how many are trained on."""
    texts = [_readable(token, tokenizer) for token in tokens["input_ids"]]
    mask = tokens["assistant_masks"]
    spans = [
        f'<span style="background:{LIGHT_GREEN if trained else LIGHT_GRAY};'
        "color:#111;border-radius:3px;padding:1px 3px;margin:1px;"
        f'display:inline-block">{html.escape(text)}</span>'
        for text, trained in zip(texts, mask, strict=True)
    ]
    return (
        f'<div style="font-family:monospace;line-height:1.9">{"".join(spans)}</div>'
        f"<div><small>{title}green: {sum(mask)} of {len(spans)} tokens are trained on"
        "</small></div>"
    )


def _readable(number: int, tokenizer: Tokenizer) -> str:
    token = str(tokenizer.convert_ids_to_tokens(number))
    text = str(tokenizer.decode([number]))
    if "▁" in token or "\ufffd" in text or not text:
        text = token  # decoding removes the space before the first word
    return text.replace(" ", "▁").replace("\n", "↵")


def memory(bars: dict[str, Memory], limit_gib: float | None = None) -> Figure:
    """Return a stacked bar of memory components per method, and the GPU memory.

    The axis ends at twice the GPU memory `limit_gib`. A longer bar is cut there, and an
    arrow with its total marks it.
    """
    from colab_utils.memory import GIB

    figure, axes = _figure(height=0.6 * len(bars) + 1.6)
    largest = max(bar.total for bar in bars.values())
    unit, name = (GIB, "GiB") if largest > GIB else (MIB, "MiB")
    left = [0.0] * len(bars)
    for part, color in MEMORY_COLORS.items():
        sizes = [getattr(bar, part) / unit for bar in bars.values()]
        if not any(sizes):
            continue
        axes.barh(list(bars), sizes, left=left, color=color, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    limit = None if limit_gib is None else limit_gib * GIB / unit
    end = 1.12 * max(*left, limit or 0)
    if limit is not None:
        end = min(end, 2 * limit)
    for y, total in enumerate(left):
        if total < 0.95 * end:
            axes.text(total, y, f" {total:.1f}", va="center")
        else:
            axes.text(end, y, f" → {total:.1f}", va="center")
    if limit is not None:
        axes.axvline(limit, color=RED, ls="--")
        axes.text(limit, -0.6, " GPU memory", color=RED, va="bottom")
    axes.invert_yaxis()
    axes.set_xlabel(name)
    axes.set_xlim(0, end)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def accuracy(series: dict[str, dict[str, float]]) -> Figure:
    """Return grouped bars of exact match by category, for at most three series.

    `series` is {"before": {"capital": 0.0, ...}, "after": {"capital": 0.9, ...}}.
    """
    figure, axes = _figure()
    categories = list(next(iter(series.values())))
    width = 0.8 / len(series)
    for i, (label, shares) in enumerate(series.items()):
        offset = (i - (len(series) - 1) / 2) * width
        places = [x + offset for x in range(len(categories))]
        heights = [100 * shares[category] for category in categories]
        bars = axes.bar(places, heights, width, label=label, color=SERIES_COLORS[i])
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    labels = [category.replace("_", " ") for category in categories]
    axes.set_xticks(range(len(categories)), labels)
    axes.set(ylabel="exact match, %", ylim=(0, 112))
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    return figure


def spread(series: dict[str, list[float]]) -> Figure:
    """Return a bar for the mean of each series of shares, with a point for each share.

    `series` is {"curated, 300 rows": [0.71, 0.78, 0.74], ...}.
    """
    figure, axes = _figure()
    for i, shares in enumerate(series.values()):
        percent = [100 * share for share in shares]
        mean = sum(percent) / len(percent)
        axes.bar(i, mean, 0.6, color=BLUE)
        axes.text(i + 0.32, mean, f"{mean:.0f}", fontsize=8, va="center")
        axes.scatter([i] * len(percent), percent, color=ORANGE, s=16, zorder=3)
    axes.set_xticks(range(len(series)), [name.replace(", ", "\n") for name in series])
    axes.set(ylabel="exact match, %", ylim=(0, 100))
    return figure


def scores(
    points: Mapping[str, tuple[float, float, float, float]], x: str, y: str
) -> Figure:
    """Return named points with the intervals of their heights; `x` and `y` name axes.

    A point is (x, y, low, high).
    """
    figure, axes = _figure()
    for name, (place, mean, low, high) in points.items():
        axes.errorbar(place, mean, [[mean - low], [high - mean]], fmt="o", capsize=3)
        axes.annotate(name, (place, mean), xytext=(6, 4), textcoords="offset points")
    axes.set(xlabel=x, ylabel=y)
    return figure


def confusion(truth: list[str], found: list[str]) -> Figure:
    """Return how often each true label (row) got each predicted label (column).

    More than 25 labels get neither names nor numbers, which would overlap.
    """
    if not truth:
        raise ValueError("There are no predictions: is the test file empty?")
    names = sorted({*truth, *found})
    pairs = Counter(zip(truth, found, strict=True))
    counts = [[pairs[row, column] for column in names] for row in names]
    figure, axes = _figure(0.5 * min(len(names), 10) + 1.5)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) > 25:
        axes.set(xticks=[], yticks=[])
        return figure
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            dark = shares[y][x] > 0.5
            axes.text(x, y, str(count), ha="center", color="white" if dark else "black")
    short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short)
    return figure


def calibration(points: list[tuple[float, float]]) -> Figure:
    """Return a figure of `evaluation.calibration`: share right by mean probability.

    A calibrated model's points are on the dashed line: of its predictions with a
    probability of 0.8, 80 % are right.
    """
    figure, axes = _figure()
    least = points[0][0]
    axes.plot([least, 1], [least, 1], color=GRAY, ls="--")
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o")
    axes.set(xlabel="predicted probability", ylabel="share right", ylim=(0, 1.02))
    return figure


def selections(vectors: Vectors, picks: dict[str, list[int]]) -> Figure:
    """Return the rows as points, once for each selection, with its rows in blue.

    The two axes are those along which the vectors vary most (PCA).
    """
    import matplotlib.pyplot as plt
    import numpy as np

    centered = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centered, full_matrices=False)[2][:2]
    points = centered @ directions.T
    size = (3.4 * len(picks), 3)
    figure, row = plt.subplots(1, len(picks), figsize=size, layout="constrained")
    plt.close(figure)
    for axes, (name, pick) in zip(np.atleast_1d(row), picks.items(), strict=True):
        axes.scatter(*points.T, s=6, color="#d1d5db")
        axes.scatter(*points[pick].T, s=9, color=BLUE)
        axes.set(title=name, xticks=[], yticks=[])
    return figure


def decisions(steps: list[tuple[str, str]]) -> Figure:
    """Return a picture of questions, one below the other, with what a "yes" leads to.

    `steps` are pairs of a question and its answer.
    """
    figure, axes = _figure(0.75 * len(steps))
    box = {"boxstyle": "round,pad=0.4", "edgecolor": GRAY}
    arrow = {"arrowstyle": "->", "color": GRAY}
    for number, (question, answer) in enumerate(steps):
        y = -number
        axes.text(0, y, question, va="center", bbox=box | {"facecolor": LIGHT_GRAY})
        axes.text(5.4, y, answer, va="center", bbox=box | {"facecolor": LIGHT_GREEN})
        axes.annotate("", (5.3, y), (4.2, y), arrowprops=arrow)
        axes.text(4.75, y + 0.12, "yes", ha="center", color=GRAY)
        if number < len(steps) - 1:
            axes.annotate("", (0.3, y - 0.7), (0.3, y - 0.3), arrowprops=arrow)
            axes.text(0.4, y - 0.5, "no", va="center", color=GRAY)
    axes.set(xlim=(-0.2, 9.5), ylim=(-len(steps) + 0.5, 0.5))
    axes.axis("off")
    return figure
