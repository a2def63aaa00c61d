"""The memory planner: sliders for a training setup, and a figure of its peak memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from colab_utils import memory, plots, runtime
from colab_utils.memory.planning import candidates
from colab_utils.memory.step import Step
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from ipywidgets import VBox
    from matplotlib.figure import Figure
    from transformers import LlamaConfig

METHOD, RANK, LENGTH, ROWS = "qlora", 16, 512, 16  # the start values of the sliders


def show_planner(config: LlamaConfig, budget: float) -> VBox | Figure:
    """Show sliders for a training setup, and a figure of its peak memory.

    The sliders set the method, the rank, the tokens in the longest row, and the rows in
    an optimizer step. `budget` is the GPU memory in bytes. Returns the box of widgets.
    A headless run prints the plan for the start values and returns its figure.
    """
    if runtime.headless():
        figure, line = draw_plan(config, budget, METHOD, RANK, LENGTH, ROWS)
        print(line)
        return figure
    import ipywidgets as widgets

    controls = _controls()
    image, text = widgets.Image(format="png"), widgets.HTML()

    def redraw(_: object = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        figure, line = draw_plan(config, budget, **values)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        # Drawing takes a while. Both change at the end, so that they always agree.
        image.value, text.value = file.getvalue(), line

    for name, control in controls.items():
        control.description = name
        control.observe(redraw, names="value")
    redraw()
    row = widgets.HBox(list(controls.values()))
    row.layout.flex_flow = "row wrap"  # ipywidgets 7 would make the box too wide
    box = widgets.VBox([row, image, text])
    box.layout.max_width = "820px"
    return box


def _controls() -> dict[str, Any]:
    """Return the widgets, by the names of the arguments of `draw_plan`."""
    import ipywidgets as widgets

    ranks = [4, 8, 16, 32, 64, 128]
    sliders = {
        "rank": widgets.SelectionSlider(options=ranks, value=RANK),
        "length": widgets.IntSlider(min=128, max=4096, step=128, value=LENGTH),
        "rows": widgets.IntSlider(min=1, max=64, value=ROWS),
    }
    for slider in sliders.values():
        slider.continuous_update = False
    method = widgets.Dropdown(options=memory.METHODS, value=METHOD)
    return {"method": method, **sliders}


def draw_plan(
    config: LlamaConfig, budget: float, method: str, rank: int, length: int, rows: int
) -> tuple[Figure, str]:
    """Return a figure of the plan's peak memory, and the plan as a line of text.

    If no plan fits, the figure shows the least memory that the plan tried, and the line
    says what to change.
    """
    limit, update = budget / memory.GIB, length * rows
    try:
        plan = memory.plan(
            config, method, rank, longest=length, update=update, budget=budget
        )
    except MemoryError as error:
        shape = Shape.from_config(config)
        step = Step(shape, method, rank, length, fast=True, optimizer="adamw_8bit")
        *_, least = candidates(step, length, update, budget)
        return plots.memory({"too much": least.cost}, limit), str(error)
    return plots.memory({"planned": plan.cost}, limit), str(plan)
