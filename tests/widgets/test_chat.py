from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from colab_utils.widgets import chat as widgets


def echo(messages, **settings):
    """Answer with the number of turns and the last words, in two pieces."""
    yield f"{len(messages)}: "
    yield messages[-1]["content"]


def broken(messages, **settings):
    yield "half an ans"
    raise ValueError("temperature <must> be positive")


def test_a_chat_keeps_its_history():
    chat = widgets.Chat(echo)
    assert chat.say("Hi") == "1: Hi"
    assert chat.say("And?") == "3: And?"
    assert chat.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "1: Hi"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "3: And?"},
    ]
    chat.clear()
    assert chat.messages == []


@pytest.mark.parametrize("answer", ["text", ["te", "xt"], None])
def test_a_reply_that_is_no_generator_is_explained(answer):
    chat = widgets.Chat(lambda messages: answer)
    with pytest.raises(TypeError, match="must yield the answer piece by piece"):
        chat.say("Hi")
    assert chat.messages == []


def test_the_system_prompt_is_sent_first_each_time():
    seen = []

    def reply(messages):
        seen.append(messages)
        yield "Yes."

    chat = widgets.Chat(reply, system="Be kind.")
    chat.say("Hi")
    chat.say("And?")
    for messages in seen:
        assert messages[0] == {"role": "system", "content": "Be kind."}
        assert [m["role"] for m in messages[1:]][::2] == ["user"] * (len(messages) // 2)
    assert all(message["role"] != "system" for message in chat.messages)


def test_the_answer_is_shown_while_it_grows():
    shown = []
    widgets.Chat(echo).say("Hi", shown.append)
    assert shown == ["1: ", "1: Hi"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_turn_that_failed_is_no_part_of_the_conversation(kind):
    def reply(messages):
        yield "half"
        if messages[-1]["content"] == "break":
            raise kind

    chat = widgets.Chat(reply)
    chat.say("Hi")
    with pytest.raises(kind):
        chat.say("break")
    assert [m["content"] for m in chat.messages] == ["Hi", "half"]
    chat.say("And?")
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant"] * 2


@pytest.mark.parametrize(("after", "kept"), [(0, ""), (1, "one"), (2, "one two")])
def test_a_stopped_answer_is_kept_as_far_as_it_came(after, kept):
    closed, shown = [], []

    def reply(messages):
        try:
            yield from ("one ", "two ", "three")
        finally:
            closed.append(True)

    chat = widgets.Chat(reply)
    assert chat.say("Hi", shown.append, lambda: len(shown) == after) == kept
    assert closed == [True]
    assert [m["content"] for m in chat.messages] == (["Hi", kept] if kept else [])


def test_what_was_said_before_a_clear_stays_forgotten():
    def reply(messages):
        yield "one "
        chat.clear()
        yield "two"

    chat = widgets.Chat(reply)
    chat.say("Hi")
    assert chat.messages == []


def test_an_empty_answer_still_takes_its_turn():
    chat = widgets.Chat(lambda messages: (piece for piece in ("", " ")))
    assert chat.say("Hi") == ""
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant"]  # and the next turn is the user's


def test_an_empty_answer_is_shown_but_not_given_to_the_model(box):
    seen = []

    def reply(messages, **settings):
        seen.append([message["content"] for message in messages])
        yield " "

    shown = box(reply)
    shown.say("Hi")
    assert "(an empty answer)" in shown.log and shown.entry.value == ""
    shown.say("And?")
    assert seen == [["Hi"], ["Hi", "", "And?"]]


def test_headless_the_first_turns_are_printed(headless, capsys):
    chat = widgets.chat_box(echo, first=["Hi", "And?"])
    assert capsys.readouterr().out.splitlines() == [
        "you:   Hi",
        "model: 1: Hi",
        "you:   And?",
        "model: 3: And?",
    ]
    assert len(chat.messages) == 4


def test_headless_the_tuned_model_answers_with_the_settings(headless):
    seen = []

    def reply(messages, **settings):
        seen.append(settings)
        yield "Yes."

    widgets.chat_box(reply, "", 0.5, 32, base=True, first=["Hi"])
    assert seen == [{"tuned": True, "temperature": 0.5, "max_new_tokens": 32}]


def test_headless_without_first_turns_nothing_happens(headless, capsys):
    assert widgets.chat_box(echo).messages == []
    assert capsys.readouterr().out == ""


class Box:
    """The widgets of a chat box, and what a browser does with them."""

    def __init__(self, reply, monkeypatch, **options) -> None:
        shown = []
        monkeypatch.setenv("HEADLESS", "0")
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setattr("IPython.display.display", shown.append)
        self.chat = widgets.chat_box(reply, **options)
        (box,) = shown
        log, self.told, row, controls = box.children
        self.now, self.past = log.children
        self.entry, self.send, self.stop, self.clear = row.children
        *self.choice, self.temperature, self.length = controls.children

    @property
    def log(self) -> str:
        return self.past.value + self.now.value

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
    monkeypatch.setattr(widgets, "REDRAW_SECONDS", 0)

    def make(reply=echo, **options) -> Box:
        return Box(reply, monkeypatch, **options)

    return make


def said(shown: Box) -> list[str]:
    return [message["content"] for message in shown.chat.messages]


def test_enter_sends_once_and_empties_the_field(box):
    shown = box()
    shown.press_enter("Hi")
    shown.finish()
    assert shown.entry.value == "" and said(shown) == ["Hi", "1: Hi"]
    assert "Hi" in shown.log and "1: Hi" in shown.log
    shown.send.click()  # nothing more to send
    shown.finish()
    assert len(shown.chat.messages) == 2


def test_leaving_the_field_does_not_send(box):
    shown = box()
    shown.entry.set_state({"value": "Hi"})
    shown.temperature.value = 0.1
    shown.finish()
    assert said(shown) == [] and shown.entry.value == "Hi"
    shown.press_enter()  # the text is known already
    shown.finish()
    assert said(shown) == ["Hi", "1: Hi"]


def test_an_enter_in_an_empty_field_is_forgotten(box):
    shown = box()
    shown.press_enter()
    shown.finish()
    shown.entry.set_state({"value": "Hi"})
    shown.finish()
    assert said(shown) == []


def test_the_same_words_can_be_sent_again(box):
    shown = box()
    for _ in range(2):
        shown.press_enter("Hi")
        shown.finish()
    assert said(shown)[1::2] == ["1: Hi", "3: Hi"]


def test_spaces_are_no_message(box):
    shown = box()
    shown.say("   ")
    assert said(shown) == [] and not shown.send.disabled


def test_a_message_while_the_model_answers_waits_in_the_field(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    assert shown.send.disabled and not shown.stop.disabled
    shown.press_enter("And?")
    shown.send.click()
    assert shown.entry.value == "And?"
    slow.go.set()
    shown.finish()
    assert slow.asked == ["Hi"] and said(shown) == ["Hi", "one two three"]
    assert not shown.send.disabled and shown.stop.disabled
    shown.press_enter()
    shown.finish()
    assert slow.asked == ["Hi", "And?"]


def test_stop_keeps_what_was_said_and_closes_the_reply(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    assert "one" in shown.now.value
    shown.stop.click()
    slow.go.set()
    shown.finish()
    assert slow.closed.is_set() and said(shown) == ["Hi", "one"]
    assert "Stopped." in shown.told.value and shown.entry.value == ""
    shown.say("Again")
    assert said(shown)[2:] == ["Again", "one two three"] and shown.told.value == ""


def test_stop_before_the_first_word_gives_the_message_back(box):
    shown = box(slow := Slow(before_first=True))
    slow.begin(shown)
    shown.stop.click()
    slow.go.set()
    shown.finish()
    assert said(shown) == [] and shown.entry.value == "Hi" and "Hi" not in shown.log
    assert shown.told.value == ""


def test_clear_while_the_model_answers_stops_it_first(box):
    shown = box(slow := Slow())
    slow.begin(shown)
    shown.clear.click()
    assert shown.send.disabled  # until the model has heard of it
    shown.press_enter("Next")
    assert "Not sent yet" in shown.told.value and shown.entry.value == "Next"
    shown.press_enter("")
    slow.go.set()
    shown.finish()
    assert slow.closed.is_set() and said(shown) == [] and shown.log == ""
    assert shown.entry.value == "" and said(shown) == []
    shown.say("Again")
    assert said(shown) == ["Again", "one two three"] and shown.told.value == ""


def test_the_log_grows_piece_by_piece(box):
    logs = []
    shown = box()
    shown.now.observe(lambda change: logs.append(change["new"]), names="value")
    shown.say("Hi")
    waiting, first, whole, last = logs
    assert "…" in waiting and "1: " in first and "1: Hi" not in first
    assert "1: Hi" in whole and last == "" and "1: Hi" in shown.past.value


def test_a_fast_model_does_not_redraw_at_every_token(box, monkeypatch):
    monkeypatch.setattr(widgets, "REDRAW_SECONDS", 3600)
    logs = []
    shown = box(lambda messages, **_: (f"{number} " for number in range(200)))
    shown.now.observe(lambda change: logs.append(change["new"]), names="value")
    shown.say("Hi")
    assert len(logs) <= 3
    assert "198 199" in shown.past.value


def test_what_is_said_is_text_not_html(box):
    def reply(messages, **settings):
        yield "<script>alert('model')</script>\n  & <b>more</b>"

    shown = box(reply)
    shown.say("<script>alert('me')</script>")
    assert "<script>" not in shown.log and "<b>" not in shown.log
    assert shown.log.count("&lt;script&gt;") == 2
    assert "&lt;/script&gt;\n  &amp; &lt;b&gt;more" in shown.log
    assert "white-space:pre-wrap" in shown.log


def test_an_error_is_shown_and_gives_the_message_back(box):
    shown = box(broken)
    shown.say("Hi")
    assert "ValueError: temperature &lt;must&gt; be positive" in shown.told.value
    assert said(shown) == [] and "Hi" not in shown.log
    assert shown.entry.value == "Hi" and not shown.send.disabled
    shown.chat.reply = echo
    shown.press_enter()
    shown.finish()
    assert shown.told.value == "" and said(shown) == ["Hi", "1: Hi"]


def test_an_error_does_not_replace_what_was_typed_meanwhile(box):
    def reply(messages, **settings):
        shown.entry.set_state({"value": "And?"})
        raise ValueError
        yield

    shown = box(reply)
    shown.say("Hi")
    assert shown.entry.value == "Hi And?"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_that_ran_out_is_explained(box, device):
    import torch

    def reply(messages, **settings):
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        yield str(torch.empty(2**50))  # a million GiB: torch's real error

    shown = box(reply)
    shown.say("Hi")
    assert "The memory ran out. Press Clear" in shown.told.value
    assert shown.entry.value == "Hi"


def test_what_a_reply_prints_stands_in_the_box(box, capsys):
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
    assert "2 turns were left out" in shown.told.value
    assert capsys.readouterr().out == "from another cell\n" and sys.stdout is before
    shown.chat.reply = echo
    shown.say("Hi")
    assert shown.told.value == ""


def test_an_error_does_not_hide_what_was_printed(box):
    def reply(messages, **settings):
        print("2 turns were left out")
        raise ValueError("nothing left")
        yield

    shown = box(reply)
    shown.say("Hi")
    assert "2 turns were left out" in shown.told.value
    assert "ValueError: nothing left" in shown.told.value


def test_clear_forgets_and_empties(box):
    shown = box()
    shown.say("Hi")
    shown.clear.click()
    assert said(shown) == [] and shown.log == ""
    shown.say("Hi")
    assert said(shown)[-1] == "1: Hi"


def test_the_system_prompt_reaches_the_model_from_the_box(box):
    shown = box(system="Be kind.")
    shown.say("Hi")
    assert said(shown)[-1] == "2: Hi"
    assert "Be kind." not in shown.log


def test_the_controls_reach_the_reply(box):
    seen = []

    def reply(messages, **settings):
        seen.append(settings)
        yield "Yes."

    shown = box(reply, temperature=0, max_new_tokens=2000, base=True)
    shown.say("Hi")
    (choice,) = shown.choice
    choice.value, shown.temperature.value, shown.length.value = "base", 1.5, 16
    shown.say("Hi")
    assert seen == [
        {"tuned": True, "temperature": 0, "max_new_tokens": 2000},
        {"tuned": False, "temperature": 1.5, "max_new_tokens": 16},
    ]


def test_without_a_base_there_is_nothing_to_choose(box):
    assert box().choice == []


def test_an_answer_ends_with_the_kernel():
    code = """
import IPython.display, threading
from colab_utils.widgets import chat as widgets

boxes, begun = [], threading.Event()
IPython.display.display = boxes.append

def reply(messages, **settings):
    try:
        while True:
            yield "more "
            begun.set()
    finally:
        print("closed", file=__import__("sys").stderr)

widgets.chat_box(reply)
entry, send, *_ = boxes[0].children[2].children
entry.value = "Hi"
send.click()
begun.wait()
"""
    environment = {**os.environ, "HEADLESS": "0", "CI": ""}
    environment["PYTHONPATH"] = str(Path(widgets.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr.strip().endswith("closed"), done.stderr


def test_the_model_behind_the_box(headless, capsys, model, tokenizer):
    from colab_utils import generation

    def reply(messages, tuned, temperature, max_new_tokens):
        yield from generation.stream(model, tokenizer, messages, max_new_tokens)

    widgets.chat_box(reply, max_new_tokens=8, first=["Why?", "And then?"])
    lines = capsys.readouterr().out.splitlines()
    (answer,) = generation.answers(model, tokenizer, ["Why?"], 8)
    assert lines[1] == f"model: {answer}"


def test_stop_stops_the_model(box, model, tokenizer):
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
    _, part = said(shown)
    assert part and whole.startswith(part) and len(part) < len(whole)


# --- the planner ----------------------------------------------------------------------


def llama_2_7b():
    from transformers import AutoConfig

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    return AutoConfig.for_model("llama", **shape)


def test_headless_the_planner_shows_its_first_position(headless, capsys):
    figure = widgets.planner(llama_2_7b(), 14.2 * 2**30)
    assert figure.axes[0].get_xlabel() == "GiB"
    assert "tokens an update" in capsys.readouterr().out


def test_the_bar_moves_with_the_sliders(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HEADLESS", "0")
    box = widgets.planner(llama_2_7b(), 14.2 * 2**30)
    sliders, picture, text = box.children
    assert [one.description for one in sliders.children] == [
        "method",
        "rank",
        "length",
        "rows",
    ]
    method, rank, length, rows = sliders.children
    first = bytes(picture.value), text.value
    assert first[0].startswith(b"\x89PNG") and "no layers recomputed" in first[1]
    rank.value = 128
    assert (bytes(picture.value), text.value) != first
    length.value, rows.value = 4096, 4
    assert "layers recomputed" in text.value and "no layers" not in text.value
    method.value = "full"
    assert "Use METHOD = 'qlora'" in text.value
