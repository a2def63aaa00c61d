"""Colab's output area: what the widgets of others switch on."""


def enable_custom_widget_manager() -> None:
    """Let the page load widgets that are not ipywidgets 7's; nothing to do here."""


def clear(wait: bool = False, output_tags: tuple[str, ...] = ()) -> None:
    """Clear the output of the cell; nothing to do outside of the page."""
