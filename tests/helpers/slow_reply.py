"""Replies for the chat box in a browser: slow to be stopped, with errors and notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import torch

Reply = Callable[..., Generator[str, None, None]]


def slow_reply(reply: Reply) -> Reply:
    """Return `reply` with pauses; certain messages cause an error, a note or a wait."""

    def slowly(
        messages: list[dict[str, str]], *settings: object, **named: object
    ) -> Generator[str, None, None]:
        text = messages[-1]["content"]
        if text == "fail":
            raise ValueError("this <was> to fail")
        if text == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        if text == "note":
            print("2 turns were left out: the context is full.")
        if text == "Wait.":
            time.sleep(2)
        for piece in reply(messages, *settings, **named):
            time.sleep(0.2)
            yield piece

    return slowly
