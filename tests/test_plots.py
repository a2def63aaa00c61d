from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer

from colab_utils import evaluation, memory, plots
from colab_utils.plots import LIGHT_GREEN


def row(question: str, answer: str) -> dict:
    texts = {"user": question, "assistant": answer}
    return {"messages": [{"role": r, "content": text} for r, text in texts.items()]}


def render(figure) -> None:
    """Render the figure: matplotlib finds many errors only then."""
    figure.canvas.draw()


def test_token_lengths_counts_all_rows_and_shows_the_limit():
    lengths = [10] * 30 + [20] * 60 + [300] * 10
    figure = plots.token_lengths(lengths, 256)
    render(figure)
    (axes,) = figure.axes
    assert axes.get_title() == "90 of 100 rows within 256 tokens"
    assert sum(bar.get_height() for bar in axes.patches) == 100
    assert list(axes.lines[0].get_xdata()) == [256, 256]


@pytest.mark.parametrize(
    ("longest", "end", "labels"), [(60, 60, []), (3000, 80, ["1 longer,\nup to 3,000"])]
)
def test_token_lengths_with_a_few_long_rows(longest, end, labels):
    figure = plots.token_lengths([40] * 199 + [longest], 512)
    render(figure)
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 200
    assert axes.patches[-1].get_height() == 1  # the last bar counts the long row
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(end)
    assert [text.get_text().strip() for text in axes.texts] == labels
    assert not axes.lines  # the limit is beyond the axis; the title shows it


def test_token_lengths_of_one_row():
    render(plots.token_lengths([5], 256))


def test_trained_tokens_are_green(tokenizer):
    html = plots.trained_tokens(row("Why?", "Because."), tokenizer).data
    green = re.findall(r"#bbf7d0[^>]*>([^<]*)</span>", html)
    assert "".join(green).replace("▁", " ") == " Because. &lt;/s&gt;"
    gray = re.findall(r"#f3f4f6[^>]*>([^<]*)</span>", html)
    assert gray[0] == "&lt;s&gt;" and "".join(gray).endswith("[/INST]")
    total = len(green) + len(gray)
    assert f"{len(green)} of {total} tokens are trained on" in html


def test_trained_tokens_of_a_byte_level_tokenizer():
    """The figure shows text, not the vocabulary's signs for bytes such as Ġ."""
    tokenizer = make_tokenizer("qwen2")
    tokenizer.chat_template = TEMPLATES["qwen25"]
    html = plots.trained_tokens(row("Is it so?", "Yes, so it is."), tokenizer).data
    green = re.findall(r"#bbf7d0[^>]*>([^<]*)</span>", html)
    assert "".join(green) == "Yes,▁so▁it▁is.&lt;|im_end|&gt;"
    gray = re.findall(r"#f3f4f6[^>]*>([^<]*)</span>", html)
    assert gray[-1] == "↵"  # after the answer's end


def test_trained_tokens_escapes_html(tokenizer):
    html = plots.trained_tokens(row("<b>?", "&<i>"), tokenizer).data
    assert "<b>" not in html and "<i>" not in html
    assert re.sub("<[^>]*>", "", html).count("&lt;") >= 4


def test_trained_tokens_of_a_preference_row_are_two_blocks(tokenizer):
    answers = {name: [{"role": "assistant", "content": name}] for name in SIDES}
    prompt = [{"role": "user", "content": "Why?"}]
    html = plots.trained_tokens({"prompt": prompt, **answers}, tokenizer).data
    blocks = html.split("<div style=")[1:]
    assert len(blocks) == 2
    for block, name in zip(blocks, SIDES, strict=True):
        assert f"<small>{name}: green: " in block
        green = re.findall(r"#bbf7d0[^>]*>([^<]*)</span>", block)
        assert "".join(green).replace("▁", " ") == f" {name} &lt;/s&gt;"


SIDES = ("chosen", "rejected")


def test_trained_tokens_of_a_text_to_classify_shows_its_label(tokenizer):
    row = {"text": "It is so.", "label": "<good>"}
    html = plots.trained_tokens(row, tokenizer).data
    assert "0 of " in html and LIGHT_GREEN not in html
    assert html.endswith("<div>label: <b>&lt;good&gt;</b></div>")


def costs(**totals: float) -> dict[str, memory.Memory]:
    parts = {"weights": 0.4, "gradients": 0.3, "optimizer": 0.2, "activations": 0.1}
    return {
        name: memory.Memory(**{part: share * total for part, share in parts.items()})
        for name, total in totals.items()
    }


def limit_in(unit: int) -> float:
    return 14.56 * memory.GIB / unit


@pytest.mark.parametrize(
    ("unit", "name"), [(memory.GIB, "GiB"), (2**20, "MiB")], ids=["GiB", "MiB"]
)
def test_memory_bars_add_up_in_either_unit(unit, name):
    figure = plots.memory(costs(qlora=5 * unit, full=100 * unit), limit_gib=14.56)
    render(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == name
    ends = [
        max(b[i].get_x() + b[i].get_width() for b in axes.containers) for i in (0, 1)
    ]
    assert ends == pytest.approx([5, 100])
    texts = [text.get_text().strip() for text in axes.texts]
    beyond = {"GiB": "→ 100.0", "MiB": "100.0"}[name]
    assert texts == ["5.0", beyond, "GPU memory"]
    assert axes.get_xlim()[1] <= 2 * limit_in(unit)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(limit_in(unit))


def test_memory_with_a_limit_beyond_the_bars():
    figure = plots.memory(costs(qlora=5 * 2**30), limit_gib=14.56)
    render(figure)
    assert figure.axes[0].get_xlim()[1] > 14.56


def test_memory_without_a_limit():
    assert len(plots.memory(costs(qlora=2**20)).axes[0].lines) == 0


def test_accuracy_bars_are_percent_and_do_not_overlap():
    series = {
        "before": {"capital": 0.0, "calling_code": 0.02},
        "after": {"capital": 0.9, "calling_code": 1.0},
        "invented": {"capital": 0.1, "calling_code": 0.0},
    }
    figure = plots.accuracy(series)
    render(figure)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[0, 2], [90, 100], [10, 0]]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["capital", "calling code"]
    bars = sorted(axes.patches, key=lambda bar: bar.get_x())
    for left, right in itertools.pairwise(bars):
        assert left.get_x() + left.get_width() <= right.get_x() + 1e-9


def test_figures_are_closed():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.token_lengths([5], 256)
    plots.memory(costs(qlora=2**20))
    plots.accuracy({"after": {"capital": 1.0}})
    assert plt.get_fignums() == before  # a notebook shows open figures again


def test_spread_shows_means_and_each_share():
    figure = plots.spread({"all, 9 rows": [0.1, 0.3], "few, 2 rows": [0.5]})
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([20, 50])
    assert sum(len(points.get_offsets()) for points in axes.collections) == 3
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "all\n9 rows",
        "few\n2 rows",
    ]


def test_scores_have_names_and_intervals():
    points = {"base": (0.2, 0.1, 0.05, 0.3), "tuned": (0.5, 0.9, 0.8, 0.95)}
    figure = plots.scores(points, "bits", "right")
    render(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["base", "tuned"]
    bars = [bar for container in axes.containers for bar in container[2]]
    ends = [segment[:, 1].tolist() for bar in bars for segment in bar.get_segments()]
    assert ends == [pytest.approx([0.05, 0.3]), pytest.approx([0.8, 0.95])]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bits", "right")


def test_calibration_shows_the_share_of_each_bin():
    sure = [0.9, 0.6, 0.5, 1.0, 0.7, 0.8]  # bins of two, in order of probability
    right = [True, False, True, True, True, False]
    figure = plots.calibration(evaluation.calibration(sure, right, bins=3))
    render(figure)
    points = figure.axes[0].lines[1]
    assert list(points.get_xdata()) == pytest.approx([0.55, 0.75, 0.95])
    assert list(points.get_ydata()) == pytest.approx([0.5, 0.5, 1.0])


def test_selections_show_all_rows_and_the_selected():
    vectors = np.random.default_rng(0).normal(size=(20, 5))
    figure = plots.selections(vectors, {"a": [1, 2, 3], "b": [4]})
    counts = [
        [len(points.get_offsets()) for points in axes.collections]
        for axes in figure.axes
    ]
    assert counts == [[20, 3], [20, 1]]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]


def test_confusion_counts_each_pair_and_cuts_long_names():
    truth = ["a", "a", "b", "a very long name of a label"]
    figure = plots.confusion(truth, ["a", "b", "b", "b"])
    render(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == list("101001001")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "a",
        "a very long name of…",
        "b",
    ]


def test_decisions_show_each_question_and_its_answer():
    figure = plots.decisions([("Is it so?", "do this"), ("Or so?", "do that")])
    render(figure)
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert {"Is it so?", "do this", "Or so?", "do that", "yes", "no"} <= shown


def test_confusion_of_many_labels_is_of_readable_size():
    names = [str(number) for number in range(200)]
    figure = plots.confusion(names, names)
    render(figure)
    assert figure.get_size_inches()[1] < 8
    assert not figure.axes[0].texts and not len(figure.axes[0].get_yticks())


def test_confusion_without_predictions_is_refused():
    with pytest.raises(ValueError, match="no predictions"):
        plots.confusion([], [])
