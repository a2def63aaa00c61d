"""The widgets use no trait that ipywidgets 8 alone has: Colab has ipywidgets 7."""

from __future__ import annotations

import warnings

import ipywidgets
import pytest
from ipywidgets import Layout, Widget

from colab_utils.widgets.chat_layout import ChatLayout
from colab_utils.widgets.planner import show_planner

UNKNOWN = "Passing unrecognized arguments"


def ignored(widget: Widget) -> list[str]:
    """List attributes that were set on a widget and its descendants but are no traits.

    ipywidgets accepts `widget.tooltip = ...` without a trait of that name, and the
    browser never gets it.
    """
    public = {name for name in vars(widget) if not name.startswith("_")}
    # ipywidgets itself sets `equals` on a widget that has options.
    found = [f"{type(widget).__name__}.{name}" for name in public - {"equals"}]
    parts = [getattr(widget, part, None) for part in ("layout", "style")]
    for inner in (*getattr(widget, "children", ()), *filter(None, parts)):
        found += ignored(inner)
    return found


def planner():
    from transformers import AutoConfig

    return show_planner(AutoConfig.for_model("llama"), 14.2 * 2**30)


def chat_box():
    return ChatLayout(0.7, 256, base=True).whole


@pytest.mark.parametrize(
    "build", [pytest.param(planner, marks=pytest.mark.slow), chat_box]
)
def test_widgets_set_only_traits(build, monkeypatch):
    monkeypatch.setenv("HEADLESS", "0")
    monkeypatch.delenv("CI", raising=False)
    with warnings.catch_warnings():
        # The warning of an unknown argument, which is then dropped.
        warnings.filterwarnings("error", UNKNOWN, DeprecationWarning)
        assert ignored(build()) == []


def test_colab_ipywidgets_lacks_newer_traits():
    """The check above can fail: these exist in ipywidgets 8 alone."""
    assert ipywidgets.__version__.startswith("7.")
    box = ipywidgets.VBox([ipywidgets.Button(layout=Layout())])
    box.children[0].layout.border_top = "1px"
    assert ignored(box) == ["Layout.border_top"]
    with pytest.warns(DeprecationWarning, match=UNKNOWN):
        Layout(border_top="1px")
