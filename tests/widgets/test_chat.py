from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from colab_utils import widgets
from colab_utils.widgets import chat as chat_module

ROOT = Path(__file__).resolve().parents[2]


def echo(messages, **settings):
    """Answer with the number of messages and the last message, in two pieces."""
    yield f"{len(messages)}: "
    yield messages[-1]["content"]


def broken(messages, **settings):
    yield "half an ans"
    raise ValueError("temperature <must> be positive")


class Box:
    """The widgets of a chat box, with the actions of a browser."""

    def __init__(self, reply, monkeypatch, **options) -> None:
        shown = []
        monkeypatch.setenv("HEADLESS", "0")
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setattr("IPython.display.display", shown.append)
        self.chat = widgets.show_chat(reply, **options)
        (box,) = shown
        log, self.notes, row, settings = box.children
        self.current, self.past = log.children
        self.entry, self.send, self.stop, self.clear = row.children
        *self.model, sliders = settings.children
        self.temperature, self.length = sliders.children

    @property
    def log(self) -> str:
        return self.past.value + self.current.value

    def press_enter(self, text: str | None = None) -> None:
        """The browser sends the key first, then the value if that has changed."""
        self.entry._handle_custom_msg({"event": "submit"}, [])
        if text is not None:
            self.entry.set_state({"value": text})

    def finish(self) -> None:
        """Wait until the key's timer and then the answer, if any, have ended."""
        for kind in (threading.Timer, threading.Thread):
            for thread in threading.enumerate():
                if isinstance(thread, kind) and (
                    kind is threading.Timer or thread.name == "chat"
                ):
                    thread.join(60)
                    assert not thread.is_alive()

    def say(self, text: str) -> None:
        self.entry.set_state({"value": text})
        self.send.click()
        self.finish()


class Slow:
    """A reply of three words that pauses before the first, or after it."""

    def __init__(self, before_first: bool = False) -> None:
        self.pauses = 0 if before_first else 1
        self.paused, self.go, self.closed = (threading.Event() for _ in range(3))
        self.asked = []

    def __call__(self, messages, **settings):
        self.asked.append(messages[-1]["content"])
        try:
            for number, word in enumerate(("one ", "two ", "three")):
                if number == self.pauses:
                    self.paused.set()
                    assert self.go.wait(60)
                yield word
        finally:
            self.closed.set()

    def begin(self, box: Box, text: str = "Hi") -> None:
        box.entry.set_state({"value": text})
        box.send.click()
        assert self.paused.wait(60)


@pytest.fixture
def box(monkeypatch):
    monkeypatch.setattr(chat_module, "REDRAW_SECONDS", 0)

    def make(reply=echo, **options) -> Box:
        return Box(reply, monkeypatch, **options)

    return make


def texts(shown: Box) -> list[str]:
    return [message["content"] for message in shown.chat.messages]


def test_log_shows_an_empty_answer(box):
    seen = []

    def reply(messages, **settings):
        seen.append([message["content"] for message in messages])
        yield " "

    shown = box(reply)
    shown.say("Hi")
    assert "(an empty answer)" in shown.log and shown.entry.value == ""
    shown.say("And?")
    assert seen == [["Hi"], ["Hi", "", "And?"]]


def test_show_chat_headless_prints_the_first_turns(headless, capsys):
    chat = widgets.show_chat(echo, first=["Hi", "And?"])
    assert capsys.readouterr().out.splitlines() == [
        "you:   Hi",
        "model: 1: Hi",
        "you:   And?",
        "model: 3: And?",
    ]
    assert len(chat.messages) == 4


def test_show_chat_headless_passes_the_settings(headless):
    seen = []

    def reply(messages, **settings):
        seen.append(settings)
        yield "Yes."

    widgets.show_chat(reply, "", 0.5, 32, base=True, first=["Hi"])
    assert seen == [{"tuned": True, "temperature": 0.5, "max_new_tokens": 32}]


def test_show_chat_headless_without_first_turns(headless, capsys):
    assert widgets.show_chat(echo).messages == []
    assert capsys.readouterr().out == ""


def test_enter_sends_once_and_empties_the_field(box):
    shown = box()
    shown.press_enter("Hi")
    shown.finish()
    assert shown.entry.value == "" and texts(shown) == ["Hi", "1: Hi"]
    assert "Hi" in shown.log and "1: Hi" in shown.log
    shown.send.click()  # nothing more to send
    shown.finish()
    assert len(shown.chat.messages) == 2


def test_leaving_the_field_does_not_send(box):
    shown = box()
    shown.entry.set_state({"value": "Hi"})
    shown.temperature.value = 0.1
    shown.finish()
    assert texts(shown) == [] and shown.entry.value == "Hi"
    shown.press_enter()  # the text has arrived before
    shown.finish()
    assert texts(shown) == ["Hi", "1: Hi"]


def test_enter_in_an_empty_field_has_no_effect(box):
    shown = box()
    shown.press_enter()
    shown.finish()
    shown.entry.set_state({"value": "Hi"})
    shown.finish()
    assert texts(shown) == []


def test_enter_sends_the_same_text_again(box):
    shown = box()
    for _ in range(2):
        shown.press_enter("Hi")
        shown.finish()
    assert texts(shown)[1::2] == ["1: Hi", "3: Hi"]


def test_send_ignores_spaces(box):
    shown = box()
    shown.say("   ")
    assert texts(shown) == [] and not shown.send.disabled


def test_send_while_the_model_answers(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    assert shown.send.disabled and not shown.stop.disabled
    shown.press_enter("And?")
    shown.send.click()
    assert shown.entry.value == "And?"
    slow.go.set()
    shown.finish()
    assert slow.asked == ["Hi"] and texts(shown) == ["Hi", "one two three"]
    assert not shown.send.disabled and shown.stop.disabled
    shown.press_enter()
    shown.finish()
    assert slow.asked == ["Hi", "And?"]


def test_stop_keeps_the_answer_so_far(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    assert "one" in shown.current.value
    shown.stop.click()
    slow.go.set()
    shown.finish()
    assert slow.closed.is_set() and texts(shown) == ["Hi", "one"]
    assert "Stopped." in shown.notes.value and shown.entry.value == ""
    shown.say("Again")
    assert texts(shown)[2:] == ["Again", "one two three"] and shown.notes.value == ""


def test_stop_before_the_first_word(box):
    shown = box(slow := Slow(before_first=True))
    slow.begin(shown)
    shown.stop.click()
    slow.go.set()
    shown.finish()
    assert texts(shown) == [] and shown.entry.value == "Hi" and "Hi" not in shown.log
    assert shown.notes.value == ""


def test_clear_while_the_model_answers(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    shown.clear.click()
    assert shown.send.disabled  # until the model has stopped
    shown.press_enter("Next")
    assert "Not sent yet" in shown.notes.value and shown.entry.value == "Next"
    shown.press_enter("")
    slow.go.set()
    shown.finish()
    assert slow.closed.is_set() and texts(shown) == [] and shown.log == ""
    assert shown.entry.value == "" and texts(shown) == []
    shown.say("Again")
    assert texts(shown) == ["Again", "one two three"] and shown.notes.value == ""


def test_log_grows_piece_by_piece(box):
    logs = []
    shown = box()
    shown.current.observe(lambda change: logs.append(change["new"]), names="value")
    shown.say("Hi")
    waiting, first, whole, last = logs
    assert "…" in waiting and "1: " in first and "1: Hi" not in first
    assert "1: Hi" in whole and last == "" and "1: Hi" in shown.past.value


def test_log_is_redrawn_at_most_every_redraw_seconds(box, monkeypatch):
    monkeypatch.setattr(chat_module, "REDRAW_SECONDS", 3600)
    logs = []
    shown = box(lambda messages, **_: (f"{number} " for number in range(200)))
    shown.current.observe(lambda change: logs.append(change["new"]), names="value")
    shown.say("Hi")
    assert len(logs) <= 3
    assert "198 199" in shown.past.value


def test_log_escapes_html(box):
    def reply(messages, **settings):
        yield "<script>alert('model')</script>\n  & <b>more</b>"

    shown = box(reply)
    shown.say("<script>alert('me')</script>")
    assert "<script>" not in shown.log and "<b>" not in shown.log
    assert shown.log.count("&lt;script&gt;") == 2
    assert "&lt;/script&gt;\n  &amp; &lt;b&gt;more" in shown.log
    assert "white-space:pre-wrap" in shown.log


def test_error_is_shown_and_returns_the_message(box):
    shown = box(broken)
    shown.say("Hi")
    assert "ValueError: temperature &lt;must&gt; be positive" in shown.notes.value
    assert texts(shown) == [] and "Hi" not in shown.log
    assert shown.entry.value == "Hi" and not shown.send.disabled
    shown.chat.reply = echo
    shown.press_enter()
    shown.finish()
    assert shown.notes.value == "" and texts(shown) == ["Hi", "1: Hi"]


def test_error_keeps_text_typed_meanwhile(box):
    def reply(messages, **settings):
        shown.entry.set_state({"value": "And?"})
        raise ValueError
        yield

    shown = box(reply)
    shown.say("Hi")
    assert shown.entry.value == "Hi And?"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_error_out_of_memory(box, device):
    import torch

    def reply(messages, **settings):
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        yield str(torch.empty(2**50))  # a million GiB: torch's real error

    shown = box(reply)
    shown.say("Hi")
    assert "The memory ran out. Press Clear" in shown.notes.value
    assert shown.entry.value == "Hi"


def test_notes_show_what_the_reply_prints(box, capsys):
    def elsewhere():
        print("from another cell")

    def reply(messages, **settings):
        print("2", "turns were left out")
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        yield "Yes."

    before = sys.stdout
    shown = box(reply)
    shown.say("Hi")
    assert "2 turns were left out" in shown.notes.value
    assert capsys.readouterr().out == "from another cell\n" and sys.stdout is before
    shown.chat.reply = echo
    shown.say("Hi")
    assert shown.notes.value == ""


def test_notes_stay_next_to_an_error(box):
    def reply(messages, **settings):
        print("2 turns were left out")
        raise ValueError("nothing left")
        yield

    shown = box(reply)
    shown.say("Hi")
    assert "2 turns were left out" in shown.notes.value
    assert "ValueError: nothing left" in shown.notes.value


def test_clear_removes_all_turns(box):
    shown = box()
    shown.say("Hi")
    shown.clear.click()
    assert texts(shown) == [] and shown.log == ""
    shown.say("Hi")
    assert texts(shown)[-1] == "1: Hi"


def test_system_prompt_reaches_the_model(box):
    shown = box(system="Be kind.")
    shown.say("Hi")
    assert texts(shown)[-1] == "2: Hi"
    assert "Be kind." not in shown.log


def test_settings_reach_the_reply(box):
    seen = []

    def reply(messages, **settings):
        seen.append(settings)
        yield "Yes."

    shown = box(reply, temperature=0, max_new_tokens=2000, base=True)
    shown.say("Hi")
    (model,) = shown.model
    model.value, shown.temperature.value, shown.length.value = "base", 1.5, 16
    shown.say("Hi")
    assert seen == [
        {"tuned": True, "temperature": 0, "max_new_tokens": 2000},
        {"tuned": False, "temperature": 1.5, "max_new_tokens": 16},
    ]


def test_settings_without_a_base_model(box):
    assert box().model == []


@pytest.mark.slow
def test_answer_ends_with_the_kernel():
    environment = {**os.environ, "HEADLESS": "0", "CI": ""}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "chat_until_exit.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr.strip().endswith("closed"), done.stderr


@pytest.mark.slow
def test_show_chat_with_a_model(headless, capsys, model, tokenizer):
    from colab_utils import generation

    def reply(messages, tuned, temperature, max_new_tokens):
        yield from generation.stream(model, tokenizer, messages, max_new_tokens)

    widgets.show_chat(reply, max_new_tokens=8, first=["Why?", "And then?"])
    lines = capsys.readouterr().out.splitlines()
    (answer,) = generation.answers(model, tokenizer, ["Why?"], 8)
    assert lines[1] == f"model: {answer}"


@pytest.mark.slow
def test_stop_with_a_model(box, model, tokenizer):
    from colab_utils import generation

    begun, go = threading.Event(), threading.Event()

    def reply(messages, tuned, temperature, max_new_tokens):
        for piece in generation.stream(model, tokenizer, messages, max_new_tokens):
            yield piece
            begun.set()
            assert go.wait(60)

    shown = box(reply, max_new_tokens=200)
    shown.entry.set_state({"value": "Why?"})
    shown.send.click()
    assert begun.wait(60)
    shown.stop.click()
    go.set()
    shown.finish()
    (whole,) = generation.answers(model, tokenizer, ["Why?"], 200)
    _, part = texts(shown)
    assert part and whole.startswith(part) and len(part) < len(whole)
