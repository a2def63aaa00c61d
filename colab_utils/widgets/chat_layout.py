"""The widgets of the chat box and their look; `chat` gives them their behavior."""

from __future__ import annotations

import html

# Each style sets text and background, so that the text is legible in any theme.
BUBBLES = {
    "user": "margin-left:auto;background:#1d4ed8;color:#fff",
    "assistant": "margin-right:auto;background:#e5e7eb;color:#111827",
    "note": "background:#fef3c7;color:#713f12",
    "error": "background:#fee2e2;color:#7f1d1d",
}
FINE_TUNED = "fine-tuned"  # the model with its adapter


def bubble(kind: str, text: str) -> str:
    """Return the HTML of a speech bubble; `kind` is a key of `BUBBLES`."""
    return (
        f'<div style="{BUBBLES[kind]};width:fit-content;max-width:85%;margin-top:6px;'
        "padding:5px 12px;border-radius:12px;line-height:1.45;white-space:pre-wrap;"
        f'overflow-wrap:anywhere">{html.escape(text)}</div>'
    )


class ChatLayout:
    """The widgets of a chat box, without behavior; `whole` contains all others."""

    def __init__(self, temperature: float, max_new_tokens: int, base: bool) -> None:
        import ipywidgets as widgets

        self._build_log()
        self._build_entry()
        self._build_settings(temperature, max_new_tokens, base)
        self.whole = widgets.VBox([self.log, self.notes, self.row, self.settings])
        self.whole.layout.max_width = "820px"

    def _build_log(self) -> None:
        """Build the log of past turns and of the current turn."""
        import ipywidgets as widgets

        # With column-reverse the browser keeps the box scrolled to its first child, the
        # newest turn. The last child is at the top.
        self.past, self.current = widgets.HTML(), widgets.HTML()
        self.past.layout.flex = self.current.layout.flex = "0 0 auto"
        self.past.layout.margin = "0"
        self.current.layout.margin = "0 0 auto"  # a short log begins at the top
        self.log = widgets.Box([self.current, self.past])
        self.log.layout = widgets.Layout(
            flex_flow="column-reverse",
            height="320px",
            overflow="auto",
            padding="4px 8px",
            border="1px solid #9ca3af",
        )
        self.notes = widgets.HTML()

    def _build_entry(self) -> None:
        """Build the text field and its buttons."""
        import ipywidgets as widgets

        self.entry = widgets.Text(
            placeholder="Write a message, then Enter",
            continuous_update=False,
            layout=widgets.Layout(flex="1 1 auto", width="auto"),
        )
        self.send = widgets.Button(description="Send", button_style="primary")
        self.stop = widgets.Button(description="Stop", disabled=True)
        self.clear = widgets.Button(description="Clear")
        self.row = widgets.HBox([self.entry, self.send, self.stop, self.clear])
        for button in (self.send, self.stop, self.clear):
            button.layout.width = "72px"

    def _build_settings(
        self, temperature: float, max_new_tokens: int, base: bool
    ) -> None:
        """Build the choice of the model, if there is one, and the sliders."""
        import ipywidgets as widgets

        self.model = widgets.ToggleButtons(options=[FINE_TUNED, "base"])
        self.model.layout.width, self.model.style.button_width = "auto", "100px"
        hottest, longest = max(2, temperature), max(1024, max_new_tokens)
        self.temperature = widgets.FloatSlider(
            temperature, min=0, max=hottest, step=0.05
        )
        self.length = widgets.IntSlider(max_new_tokens, min=1, max=longest)
        sliders = {"temperature": self.temperature, "length": self.length}
        for name, slider in sliders.items():
            slider.description = name
            slider.continuous_update = False
            slider.layout.flex, slider.layout.width = "1 1 200px", "auto"
            slider.style.description_width = "85px"
        # In a narrow page the sliders move below the choice of the model.
        both = widgets.HBox(list(sliders.values()))
        both.layout.flex, both.layout.width = "1 1 480px", "auto"
        choice = [self.model] if base else []
        self.settings = widgets.HBox([*choice, both])
        for row in (both, self.settings):
            row.layout.flex_flow = "row wrap"
