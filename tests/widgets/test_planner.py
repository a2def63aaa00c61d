from __future__ import annotations

import re

import pytest

from colab_utils import widgets
from colab_utils.widgets.planner import draw_plan


def llama_2_7b():
    from transformers import AutoConfig

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    return AutoConfig.for_model("llama", **shape)


def test_show_planner_headless(headless, capsys):
    figure = widgets.show_planner(llama_2_7b(), 14.2 * 2**30)
    assert figure.axes[0].get_xlabel() == "GiB"
    assert "tokens an update" in capsys.readouterr().out


@pytest.mark.slow
def test_show_planner_follows_its_sliders(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HEADLESS", "0")
    box = widgets.show_planner(llama_2_7b(), 14.2 * 2**30)
    sliders, image, text = box.children
    assert [control.description for control in sliders.children] == [
        "method",
        "rank",
        "length",
        "rows",
    ]
    method, rank, length, rows = sliders.children
    first = bytes(image.value), text.value
    assert first[0].startswith(b"\x89PNG") and "checkpointing for no layers" in first[1]
    rank.value = 128
    assert (bytes(image.value), text.value) != first
    length.value, rows.value = 4096, 4
    assert "checkpointing for" in text.value and "no layers" not in text.value
    method.value = "full"
    assert "Use METHOD = 'qlora'" in text.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rank", "length", "rows"),
    [("full", 16, 4096, 4), ("full", 16, 512, 1), ("lora", 128, 4096, 16)],
)
def test_draw_plan_shows_the_number_of_its_text(method, rank, length, rows):
    """If nothing fits, the figure and the text are about the same plan."""
    budget = 14.26 * 2**30
    figure, line = draw_plan(llama_2_7b(), budget, method, rank, length, rows)
    needed = re.search(r"needs at least ([\d.]+) GiB", line)[1]
    shown = [text.get_text().split()[-1] for text in figure.axes[0].texts]
    assert needed in shown
