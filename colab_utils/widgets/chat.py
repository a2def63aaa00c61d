"""The chat box: it sends messages, streams answers, and can be stopped and cleared."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from colab_utils import runtime
from colab_utils.widgets.chat_layout import FINE_TUNED, ChatLayout, bubble
from colab_utils.widgets.conversation import Chat, Reply

EMPTY = "(an empty answer)"
BUSY = "Not sent yet: the model is still answering. Send again when it is done."
STOPPED = "Stopped. The answer so far stays in the conversation."
REDRAW_SECONDS = 0.1  # browsers and Colab's channel are too slow for every token
ENTER_SECONDS = 0.3  # a changed text arrives within this time after Enter


class ChatBox:
    """A chat as widgets; `chat` is its conversation, `layout.whole` the widget to show.

    An answer is generated in a thread, so that the kernel can handle a click on Stop
    meanwhile. At most one answer is generated at a time.
    """

    def __init__(
        self, chat: Chat, temperature: float, max_new_tokens: int, base: bool
    ) -> None:
        self.chat = chat
        self.layout = ChatLayout(temperature, max_new_tokens, base)
        self._answering = threading.Lock()  # held while the model answers
        self._stopped, self._entered = threading.Event(), threading.Event()
        self.layout.entry.on_msg(self._on_message)
        self.layout.entry.observe(self._send_if_entered, names="value")
        self.layout.send.on_click(self._send)
        self.layout.stop.on_click(lambda _: self._stopped.set())
        self.layout.clear.on_click(self._clear)

    def _on_message(self, _: object, content: dict[str, object], __: object) -> None:
        """Handle the Enter key. The key arrives first, then the text if it has changed.

        A new text without Enter means that the user left the field, perhaps to move a
        slider.
        """
        if content.get("event") == "submit":
            self._entered.set()
            threading.Timer(ENTER_SECONDS, self._send_if_entered).start()

    def _send_if_entered(self, _: object = None) -> None:
        if self._entered.is_set():
            self._send()

    def _send(self, _: object = None) -> None:
        """Start to answer the text in the field, unless the model is busy."""
        layout = self.layout
        self._entered.clear()
        if not self._answering.acquire(blocking=False):
            if layout.entry.value.strip():
                layout.notes.value = bubble("note", BUSY)
            return
        text = layout.entry.value.strip()
        if not text:
            self._answering.release()
            return
        self._stopped.clear()
        layout.send.disabled, layout.stop.disabled = True, False
        layout.entry.value = layout.notes.value = ""
        settings = {
            "tuned": layout.model.value == FINE_TUNED,
            "temperature": layout.temperature.value,
            "max_new_tokens": layout.length.value,
        }
        threading.Thread(target=self._turn, args=(text, settings), name="chat").start()

    def _turn(self, text: str, settings: dict[str, Any]) -> None:
        """Answer one message; the thread that runs this releases the lock at the end.

        A message without an answer goes back into the field.
        """
        layout, messages = self.layout, self.chat.messages
        before, view = len(messages), _TurnView(layout, text)
        try:
            with redirect_stdout(_ThreadOutput(view.note)):
                answer = self.chat.say(text, view.show, self._must_stop, **settings)
                kept = answer and self.chat.messages is messages
                if self._stopped.is_set() and kept:
                    print(STOPPED)
        except Exception as error:
            layout.notes.value += bubble("error", _explain(error))
        finally:
            if len(messages) == before and self.chat.messages is messages:
                layout.entry.value = f"{text} {layout.entry.value}".strip()
            self._draw()
            layout.send.disabled, layout.stop.disabled = False, True
            self._answering.release()

    def _must_stop(self) -> bool:
        """Return whether the user stopped the answer, or the kernel is ending."""
        return self._stopped.is_set() or not threading.main_thread().is_alive()

    def _clear(self, _: object) -> None:
        self._stopped.set()
        self.chat.clear()
        self.layout.notes.value = ""
        self._draw()

    def _draw(self) -> None:
        """Show the turns of the conversation."""
        turns = [(m["role"], m["content"] or EMPTY) for m in self.chat.messages]
        self.layout.past.value = "".join(bubble(role, text) for role, text in turns)
        self.layout.current.value = ""


class _TurnView:
    """Shows the current turn: the message, the answer so far, and printed lines."""

    def __init__(self, layout: ChatLayout, text: str) -> None:
        self.layout, self.question = layout, bubble("user", text)
        self.printed, self.drawn = "", 0.0
        layout.current.value = self.question + bubble("assistant", "…")

    def show(self, answer: str) -> None:
        """Show the answer so far, unless it was drawn a moment ago."""
        if time.monotonic() - self.drawn >= REDRAW_SECONDS:
            self.layout.current.value = self.question + bubble("assistant", answer)
            self.drawn = time.monotonic()

    def note(self, printed: str) -> None:
        """Show what was printed during the answer."""
        self.printed += printed
        notes = self.printed.strip()
        self.layout.notes.value = bubble("note", notes) if notes else ""


class _ThreadOutput:
    """A standard output that passes the text printed by this thread to a function.

    Output of a thread belongs to no cell, so a notebook may not show it. The output of
    other threads does not change.
    """

    def __init__(self, receive: Callable[[str], object]) -> None:
        self.out, self.receive = sys.stdout, receive
        self.thread = threading.current_thread()

    def write(self, text: str) -> int:
        if threading.current_thread() is not self.thread:
            return self.out.write(text)
        self.receive(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:  # flush, encoding, ...
        return getattr(self.out, name)


def _explain(error: Exception) -> str:
    """Return what went wrong, and what the user can do next."""
    message = f"{type(error).__name__}: {error}"
    memory = ("out of memory", "allocate memory")  # torch's words on a GPU, on a CPU
    if isinstance(error, MemoryError) or any(words in message for words in memory):
        return (
            "The memory ran out. Press Clear, which shortens the prompt, or choose a "
            f"smaller length. Then send again.\n{message.splitlines()[0]}"
        )
    return f"{message}\nYour message is back in the field below."


def show_chat(
    reply: Reply,
    system: str = "",
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    base: bool = False,
    first: list[str] | None = None,
) -> Chat:
    """Show a chat box, and return its conversation.

    `reply(messages, tuned, temperature, max_new_tokens)` yields an answer piece by
    piece. The numbers are the start values of the controls. With `base` the user can
    also choose the base model (tuned=False). A headless run sends the messages in
    `first` instead, and prints the conversation.
    """
    chat = Chat(reply, system)
    if runtime.headless():
        for text in first or []:
            print(f"you:   {text}")
            answer = chat.say(
                text,
                tuned=True,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
            )
            print(f"model: {answer}")
        return chat
    from IPython.display import display

    display(ChatBox(chat, temperature, max_new_tokens, base).layout.whole)
    return chat
