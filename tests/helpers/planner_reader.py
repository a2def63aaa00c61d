"""Use the memory planner of notebook 02 in a browser."""

from __future__ import annotations

from playwright.sync_api import expect

from helpers.lab import Lab

FREE = "checkpointing for no layers"


def use_planner(lab: Lab, cell: int) -> None:
    """Move the planner's controls, and check that the figure and the text follow."""
    lab.scroll_to(cell)
    page = lab.page
    box = page.locator(".widget-vbox", has=page.locator("img.widget-image")).last
    image, text = box.locator("img"), box.locator(".widget-html").last
    expect(text).to_contain_text(FREE, timeout=60_000)
    box.scroll_into_view_if_needed()
    lab.shot("planner")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth"), "it is too wide"
    first = str(image.get_attribute("src"))
    for name, value in (("length", "4096"), ("rows", "4")):
        slider = box.locator(".widget-hslider", has_text=name)
        readout = slider.locator(".widget-readout")
        readout.fill(value)
        readout.press("Enter")
    expect(text).not_to_contain_text(FREE)
    expect(image).not_to_have_attribute("src", first)
    second = str(image.get_attribute("src"))
    lab.use_theme("JupyterLab Dark")
    lab.shot("planner-dark")
    lab.use_theme("JupyterLab Light")
    box.locator("select").first.select_option("full")
    expect(text).to_contain_text("Use METHOD = 'qlora'")
    expect(image).not_to_have_attribute("src", second)
    lab.shot("planner-too-much")
