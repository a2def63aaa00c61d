from __future__ import annotations

import pytest

from colab_utils import widgets


def echo(messages):
    """Answer with the number of turns and the last words, in two pieces."""
    yield f"{len(messages)}: "
    yield messages[-1]["content"]


def broken(messages):
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


def test_headless_the_first_turns_are_printed(headless, capsys):
    chat = widgets.chat_box(echo, first=["Hi", "And?"])
    assert capsys.readouterr().out.splitlines() == [
        "you:   Hi",
        "model: 1: Hi",
        "you:   And?",
        "model: 3: And?",
    ]
    assert len(chat.messages) == 4


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
        self.log, row, self.error = box.children
        self.entry, self.send, self.clear = row.children

    def enter(self, text: str) -> None:
        """Type and press Enter: the browser sends the new value of the field."""
        self.entry.set_state({"value": text})


@pytest.fixture
def box(monkeypatch):
    def make(reply=echo, **options) -> Box:
        return Box(reply, monkeypatch, **options)

    return make


def test_enter_sends_once_and_empties_the_field(box):
    shown = box()
    shown.enter("Hi")
    assert shown.entry.value == ""
    assert [m["content"] for m in shown.chat.messages] == ["Hi", "1: Hi"]
    assert "Hi" in shown.log.value and "1: Hi" in shown.log.value
    # Leaving the field on the way to the button sends as Enter does; the click after it
    # finds nothing more to send.
    shown.send.click()
    assert len(shown.chat.messages) == 2


def test_the_same_words_can_be_sent_again(box):
    shown = box()
    shown.enter("Hi")
    shown.enter("Hi")
    assert [m["content"] for m in shown.chat.messages][1::2] == ["1: Hi", "3: Hi"]


def test_spaces_are_no_message(box):
    shown = box()
    shown.enter("   ")
    shown.send.click()
    assert shown.chat.messages == []


def test_a_message_while_the_model_answers_waits(box):
    made = []

    def reply(messages):
        made.append(messages[-1]["content"])
        assert shown.send.disabled
        shown.send.click()
        yield "Yes."

    shown = box(reply)
    shown.enter("Hi")
    assert made == ["Hi"]
    assert not shown.send.disabled


def test_the_log_grows_piece_by_piece(box):
    logs = []
    shown = box()
    shown.log.observe(lambda change: logs.append(change["new"]), names="value")
    shown.enter("Hi")
    assert len(logs) >= 2
    assert "1: " in logs[0] and "1: Hi" not in logs[0]


def test_what_is_said_is_text_not_html(box):
    def reply(messages):
        yield "<script>alert('model')</script>\n& <b>more</b>"

    shown = box(reply)
    shown.enter("<script>alert('me')</script>")
    assert "<script>" not in shown.log.value and "<b>" not in shown.log.value
    assert shown.log.value.count("&lt;script&gt;") == 2
    assert "<br>&amp; &lt;b&gt;more" in shown.log.value


def test_an_error_is_shown_and_the_next_message_works(box):
    shown = box(broken)
    shown.enter("Hi")
    assert "ValueError: temperature &lt;must&gt; be positive" in shown.error.value
    assert shown.chat.messages == [] and "Hi" not in shown.log.value
    assert not shown.send.disabled
    shown.chat.reply = echo
    shown.enter("Again")
    assert shown.error.value == ""
    assert len(shown.chat.messages) == 2


def test_clear_forgets_and_empties(box):
    shown = box()
    shown.enter("Hi")
    shown.clear.click()
    assert shown.chat.messages == [] and shown.log.value == ""
    shown.enter("Hi")
    assert shown.chat.messages[-1]["content"] == "1: Hi"


def test_the_system_prompt_reaches_the_model_from_the_box(box):
    shown = box(system="Be kind.")
    shown.enter("Hi")
    assert shown.chat.messages[-1]["content"] == "2: Hi"
    assert "Be kind." not in shown.log.value


def test_the_model_behind_the_box(headless, capsys, model, tokenizer):
    from colab_utils import generation

    def reply(messages):
        yield from generation.stream(model, tokenizer, messages, 8)

    widgets.chat_box(reply, first=["Why?", "And then?"])
    lines = capsys.readouterr().out.splitlines()
    (answer,) = generation.answers(model, tokenizer, ["Why?"], 8)
    assert lines[1] == f"model: {answer}"


# --- the planner ----------------------------------------------------------------------


def llama_2_7b():
    from transformers import AutoConfig

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    return AutoConfig.for_model("llama", **shape)


def test_headless_the_planner_shows_its_first_position(headless, capsys):
    figure = widgets.planner(llama_2_7b(), 14.2 * 2**30)
    assert figure.axes[0].get_xlabel() == "GiB"
    assert "tokens at a time" in capsys.readouterr().out


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
