"""The chat box and the memory planner, for ipywidgets 7 and 8, and without a screen."""

from __future__ import annotations

import html
import io
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, redirect_stdout
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import LlamaConfig

Messages = list[dict[str, str]]
Reply = Callable[..., Generator[str, None, None]]

EMPTY = "(an empty answer)"
BUSY = (
    "Not sent yet: the model is still at the last answer. Send again when it is done."
)
REDRAW_SECONDS = 0.1  # a browser, and Colab's channel to it, fall behind at every token
# Text and background are set together, so that they are legible in any theme.
BUBBLES = {
    "user": "margin-left:auto;background:#1d4ed8;color:#fff",
    "assistant": "margin-right:auto;background:#e5e7eb;color:#111827",
    "note": "background:#fef3c7;color:#713f12",
    "error": "background:#fee2e2;color:#7f1d1d",
}


class Chat:
    """A conversation: `say` adds a turn and returns the streamed answer, whole."""

    def __init__(self, reply: Reply, system: str = "") -> None:
        self.reply = reply
        self.messages: Messages = []
        self.system = system

    def say(
        self,
        text: str,
        show: Callable[[str], Any] = lambda answer: None,
        stopped: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> str:
        """Send `text`; `show` is called with the answer so far, each time it grows.

        `settings` go to `reply`. Once `stopped()` is true, what there is of the answer
        is kept; a turn that has none yet is taken back, and "" returned. A model that
        ends at once has said "", too, and that turn is kept.
        """
        messages = self.messages  # that of now: `clear` begins another
        messages.append({"role": "user", "content": text})
        start = [{"role": "system", "content": self.system}] if self.system else []
        answer, cut = "", False
        try:
            pieces = self.reply(start + messages, **settings)
            if not isinstance(pieces, Generator):
                raise TypeError("reply must yield the answer piece by piece")
            with closing(pieces):
                for piece in pieces:
                    if cut := stopped():
                        break
                    answer += piece
                    show(answer)
        except BaseException:  # an interrupted turn is none either
            messages.pop()
            raise
        answer = answer.strip()
        if cut and not answer:
            messages.pop()
            return ""
        messages.append({"role": "assistant", "content": answer})
        return answer

    def clear(self) -> None:
        """Forget all turns."""
        self.messages = []


class _Heard:
    """A standard output that hears what this thread prints and passes on the rest.

    What a thread prints may land nowhere: it belongs to no cell.
    """

    def __init__(self, hear: Callable[[str], Any]) -> None:
        self.out, self.hear = sys.stdout, hear
        self.thread = threading.current_thread()

    def write(self, text: str) -> int:
        if threading.current_thread() is not self.thread:
            return self.out.write(text)
        self.hear(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.out, name)


def _bubble(kind: str, text: str) -> str:
    return (
        f'<div style="{BUBBLES[kind]};width:fit-content;max-width:85%;margin-top:6px;'
        "padding:5px 12px;border-radius:12px;line-height:1.45;white-space:pre-wrap;"
        f'overflow-wrap:anywhere">{html.escape(text)}</div>'
    )


def _explain(problem: Exception) -> str:
    """What went wrong, and what the reader can do."""
    said = f"{type(problem).__name__}: {problem}"
    memory = ("out of memory", "allocate memory")  # torch's words on a GPU, on a CPU
    if isinstance(problem, MemoryError) or any(words in said for words in memory):
        return (
            "The memory ran out. Press Clear, which shortens what the model reads, or "
            f"choose a smaller length; then send again.\n{said.splitlines()[0]}"
        )
    return f"{said}\nYour message is back in the field below."


class _Layout:
    """The chat box's widgets, which do nothing yet; `whole` holds them all."""

    def __init__(self, temperature: float, max_new_tokens: int, base: bool) -> None:
        import ipywidgets as widgets

        # The last child is the topmost, and the box stays scrolled to the first: the
        # browser does that by itself where the order is reversed.
        self.past, self.now = widgets.HTML(), widgets.HTML()
        self.past.layout.flex = self.now.layout.flex = "0 0 auto"
        self.past.layout.margin = "0"
        self.now.layout.margin = "0 0 auto"  # a short conversation stands at the top
        log = widgets.Box([self.now, self.past])
        log.layout = widgets.Layout(
            flex_flow="column-reverse",
            height="320px",
            overflow="auto",
            padding="4px 8px",
            border="1px solid #9ca3af",
        )
        self.told = widgets.HTML()
        self.entry = widgets.Text(
            placeholder="Write a message, then Enter",
            continuous_update=False,
            layout=widgets.Layout(flex="1 1 auto", width="auto"),
        )
        self.send = widgets.Button(description="Send", button_style="primary")
        self.stop = widgets.Button(description="Stop", disabled=True)
        self.clear = widgets.Button(description="Clear")
        row = widgets.HBox([self.entry, self.send, self.stop, self.clear])
        for button in row.children[1:]:
            button.layout.width = "72px"
        self.choice = widgets.ToggleButtons(options=["tuned", "base"])
        self.choice.layout.width, self.choice.style.button_width = "auto", "60px"
        most, longest = max(2, temperature), max(1024, max_new_tokens)
        self.heat = widgets.FloatSlider(temperature, min=0, max=most, step=0.05)
        self.length = widgets.IntSlider(max_new_tokens, min=1, max=longest)
        for slider, name in ((self.heat, "temperature"), (self.length, "length")):
            slider.description = name
            slider.continuous_update = False
            slider.layout.flex, slider.layout.width = "1 1 200px", "auto"
            slider.style.description_width = "85px"
        choice = [self.choice] if base else []
        controls = widgets.HBox([*choice, self.heat, self.length])
        controls.layout.flex_flow = "row wrap"
        self.whole = widgets.VBox([log, self.told, row, controls])
        self.whole.layout.max_width = "820px"


def chat_box(
    reply: Reply,
    system: str = "",
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    base: bool = False,
    first: list[str] | None = None,
) -> Chat:
    """Show a box to chat in; headless, hold the conversation `first` and print it.

    `reply(messages, tuned, temperature, max_new_tokens)` yields the answer piece by
    piece. The numbers are where the controls start; `base` offers `tuned=False`.
    """
    chat = Chat(reply, system)
    if runtime.headless():
        start = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        for text in first or []:
            print(f"you:   {text}")
            print(f"model: {chat.say(text, tuned=True, **start)}")
        return chat
    from IPython.display import display

    box = _Layout(temperature, max_new_tokens, base)
    answering = threading.Lock()  # held while the model answers
    halted, entered = threading.Event(), threading.Event()

    def draw() -> None:
        turns = [(m["role"], m["content"] or EMPTY) for m in chat.messages]
        box.past.value = "".join(_bubble(role, text) for role, text in turns)
        box.now.value = ""

    def turn(text: str, settings: dict[str, Any]) -> None:
        question, messages, notes, drawn = _bubble("user", text), chat.messages, "", 0.0
        before = len(messages)

        def show(answer: str) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= REDRAW_SECONDS:
                box.now.value = question + _bubble("assistant", answer)
                drawn = time.monotonic()

        def hear(printed: str) -> None:
            nonlocal notes
            notes += printed
            box.told.value = _bubble("note", notes.strip()) if notes.strip() else ""

        def stopped() -> bool:  # by the reader, or because the kernel ends
            return halted.is_set() or not threading.main_thread().is_alive()

        box.now.value = question + _bubble("assistant", "…")
        try:
            with redirect_stdout(_Heard(hear)):
                answer = chat.say(text, show, stopped, **settings)
                if halted.is_set() and answer and chat.messages is messages:
                    print("Stopped. What was said so far stays in the conversation.")
        except Exception as error:
            box.told.value += _bubble("error", _explain(error))
        finally:
            if len(messages) == before and chat.messages is messages:  # taken back
                waiting = box.entry.value
                box.entry.value = f"{text} {waiting}".strip()
            draw()
            box.send.disabled, box.stop.disabled = False, True
            answering.release()

    def on_send(_: object = None) -> None:
        entered.clear()
        if not answering.acquire(blocking=False):
            if box.entry.value.strip():
                box.told.value = _bubble("note", BUSY)
            return
        text = box.entry.value.strip()
        if not text:
            answering.release()
            return
        halted.clear()
        box.send.disabled, box.stop.disabled = True, False
        box.entry.value = box.told.value = ""
        settings = {
            "tuned": box.choice.value == "tuned",
            "temperature": box.heat.value,
            "max_new_tokens": box.length.value,
        }
        # In a thread of its own, or the kernel would not hear of the click on Stop.
        threading.Thread(target=turn, args=(text, settings), name="chat").start()

    # Enter arrives first, then the text, if it has changed. The text alone means that
    # the field was left, perhaps to move a slider.
    def on_message(_: object, content: dict[str, Any], __: object) -> None:
        if content.get("event") == "submit":
            entered.set()
            threading.Timer(0.3, lambda: entered.is_set() and on_send()).start()

    def on_clear(_: object) -> None:
        halted.set()
        chat.clear()
        box.told.value = ""
        draw()

    box.entry.on_msg(on_message)
    box.entry.observe(lambda _: entered.is_set() and on_send(), names="value")
    box.send.on_click(on_send)
    box.stop.on_click(lambda _: halted.set())
    box.clear.on_click(on_clear)
    display(box.whole)
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
                config, method, rank, longest=length, update=length * rows, budget=room
            )
        except MemoryError as problem:
            cost = memory.estimate(
                config, method, rank, length, recompute=config.num_hidden_layers
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
    controls = widgets.HBox(list(choices.values()))
    controls.layout.flex_flow = "row wrap"  # ipywidgets 7 would make the box too wide
    box = widgets.VBox([controls, picture, text])
    box.layout.max_width = "820px"
    return box
