"""The chat box and the memory planner, for ipywidgets 7 and 8, and without a screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import LlamaConfig

Messages = list[dict[str, str]]
Reply = Callable[[Messages], Iterator[str]]


class Chat:
    """A conversation: `say` adds a turn and returns the streamed answer, whole."""

    def __init__(self, reply: Reply, system: str = "") -> None:
        self.reply = reply
        self.messages: Messages = []
        self.system = system

    def say(self, text: str, show: Callable[[str], Any] = lambda answer: None) -> str:
        """Send `text`; `show` is called with the answer so far, each time it grows."""
        self.messages.append({"role": "user", "content": text})
        start = [{"role": "system", "content": self.system}] if self.system else []
        answer = ""
        try:
            for piece in self.reply(start + self.messages):
                answer += piece
                show(answer)
        except BaseException:  # an interrupted turn is none either
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.strip() or "..."})
        return answer

    def clear(self) -> None:
        """Forget all turns."""
        self.messages = []


def chat_box(reply: Reply, system: str = "", first: list[str] | None = None) -> Chat:
    """Show a box to chat in; headless, hold the conversation `first` and print it.

    `reply` takes messages and yields the answer piece by piece.
    """
    chat = Chat(reply, system)
    if runtime.headless():
        for text in first or []:
            print(f"you:   {text}")
            print(f"model: {chat.say(text)}")
        return chat
    import html

    import ipywidgets as widgets
    from IPython.display import display

    log = widgets.HTML(layout=widgets.Layout(max_height="320px", overflow="auto"))
    entry = widgets.Text(
        placeholder="Write a message, then Enter",
        continuous_update=False,
        layout=widgets.Layout(width="70%"),
    )
    send = widgets.Button(description="Send", button_style="primary")
    clear = widgets.Button(description="Clear")
    error = widgets.HTML()

    def bubble(role: str, text: str) -> str:
        side, colour = ("right", "#dbeafe") if role == "user" else ("left", "#f3f4f6")
        text = html.escape(text).replace("\n", "<br>")
        return (
            f'<div style="text-align:{side};margin:4px"><span style="display:'
            f"inline-block;background:{colour};color:#111;padding:4px 10px;"
            f'border-radius:10px;text-align:left">{text}</span></div>'
        )

    def draw(answer: str = "") -> None:
        turns = [bubble(m["role"], m["content"]) for m in chat.messages]
        log.value = "".join(turns) + (bubble("assistant", answer) if answer else "")

    def on_send(_: object) -> None:
        text = entry.value.strip()
        if not text or send.disabled:
            return
        entry.value, error.value, send.disabled = "", "", True
        try:
            chat.say(text, draw)
        except Exception as problem:
            name, said = type(problem).__name__, html.escape(str(problem))
            error.value = f"<b>{name}: {said}</b>"
        finally:
            send.disabled = False
            draw()

    def on_clear(_: object) -> None:
        chat.clear()
        error.value = ""
        draw()

    send.on_click(on_send)
    clear.on_click(on_clear)
    entry.observe(lambda change: change["new"] and on_send(None), names="value")
    display(widgets.VBox([log, widgets.HBox([entry, send, clear]), error]))
    return chat


def planner(config: LlamaConfig, room: float) -> Any:
    """Sliders for method, rank, row length and batch; the bar of the plan moves.

    `room` is the card's memory in bytes. Headless, the figure of the first position is
    shown. Returns the box, or that figure.
    """
    from colab_utils import memory, plots

    def drawn(method: str, rank: int, length: int, rows: int) -> tuple[Any, str]:
        limit = room / memory.GIB
        try:
            found = memory.plan(
                config, method, rank, longest=length, update=length * rows, room=room
            )
        except MemoryError as problem:
            cost = memory.estimate(
                config, method, length, rank, recompute=config.num_hidden_layers
            )
            return plots.memory({"too much": cost}, limit), str(problem)
        return plots.memory({"planned": found.cost}, limit), str(found)

    start = {"method": "qlora", "rank": 16, "length": 512, "rows": 16}
    if runtime.headless():
        figure, line = drawn(**start)
        print(line)
        return figure
    import ipywidgets as widgets

    choices = {
        "method": widgets.Dropdown(options=memory.METHODS, value="qlora"),
        "rank": widgets.SelectionSlider(options=[4, 8, 16, 32, 64, 128], value=16),
        "length": widgets.IntSlider(min=128, max=4096, step=128, value=512),
        "rows": widgets.IntSlider(min=1, max=64, value=16),
    }
    picture, text = widgets.Image(format="png"), widgets.HTML()

    def redraw(_: object = None) -> None:
        figure, line = drawn(**{name: one.value for name, one in choices.items()})
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        picture.value, text.value = file.getvalue(), line

    for name, one in choices.items():
        one.description = name
        one.continuous_update = False
        one.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox(list(choices.values())), picture, text])
