from __future__ import annotations

import pytest

from colab_utils.widgets import Chat


def echo(messages, **settings):
    """Answer with the number of messages and the last message, in two pieces."""
    yield f"{len(messages)}: "
    yield messages[-1]["content"]


def test_say_keeps_the_history():
    chat = Chat(echo)
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
def test_say_with_a_reply_that_is_not_a_generator(answer):
    chat = Chat(lambda messages: answer)
    with pytest.raises(TypeError, match="must yield the answer piece by piece"):
        chat.say("Hi")
    assert chat.messages == []


def test_say_sends_the_system_prompt_first():
    seen = []

    def reply(messages):
        seen.append(messages)
        yield "Yes."

    chat = Chat(reply, system="Be kind.")
    chat.say("Hi")
    chat.say("And?")
    for messages in seen:
        assert messages[0] == {"role": "system", "content": "Be kind."}
        assert [m["role"] for m in messages[1:]][::2] == ["user"] * (len(messages) // 2)
    assert all(message["role"] != "system" for message in chat.messages)


def test_say_shows_the_growing_answer():
    shown = []
    Chat(echo).say("Hi", shown.append)
    assert shown == ["1: ", "1: Hi"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_say_removes_a_failed_turn(kind):
    def reply(messages):
        yield "half"
        if messages[-1]["content"] == "break":
            raise kind

    chat = Chat(reply)
    chat.say("Hi")
    with pytest.raises(kind):
        chat.say("break")
    assert [m["content"] for m in chat.messages] == ["Hi", "half"]
    chat.say("And?")
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant"] * 2


@pytest.mark.parametrize(("after", "kept"), [(0, ""), (1, "one"), (2, "one two")])
def test_say_keeps_a_stopped_answer(after, kept):
    closed, shown = [], []

    def reply(messages):
        try:
            yield from ("one ", "two ", "three")
        finally:
            closed.append(True)

    chat = Chat(reply)
    assert chat.say("Hi", shown.append, lambda: len(shown) == after) == kept
    assert closed == [True]
    assert [m["content"] for m in chat.messages] == (["Hi", kept] if kept else [])


def test_say_after_clear_during_the_answer():
    def reply(messages):
        yield "one "
        chat.clear()
        yield "two"

    chat = Chat(reply)
    chat.say("Hi")
    assert chat.messages == []


def test_say_keeps_an_empty_answer():
    chat = Chat(lambda messages: (piece for piece in ("", " ")))
    assert chat.say("Hi") == ""
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant"]  # and the next turn is the user's
