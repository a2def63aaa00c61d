"""Cut texts that already have the marks of a chat template into messages."""

from __future__ import annotations

import re
from collections.abc import Callable

from colab_utils.data.schema import Message

SPECIAL = re.compile(r"^\s*(<s>|<bos>|<\|begin_of_text\|>)+|(</s>|<eos>)\s*$")


def cut(text: str) -> tuple[str, list[Message]] | None:
    """Return (the marks' name, the messages), or None for a text without marks."""
    for name, sign, parse in FORMATS:
        if sign in text and (messages := parse(text)):
            return name, messages
    return None


def _turns(pattern: str, roles: dict[str, str], ends: str = "") -> Callable:
    """Return a parser of texts in which a mark opens each turn."""
    opening = re.compile(pattern)
    end = re.compile(ends) if ends else None

    def parse(text: str) -> list[Message]:
        text = SPECIAL.sub("", text)
        pieces = opening.split(text)
        found: list[Message] = []
        if pieces[0].strip():
            if len(pieces[0]) > 1000:
                return []
            found.append({"role": "system", "content": pieces[0].strip()})
        for mark, content in zip(pieces[1::2], pieces[2::2], strict=True):
            if end:
                content = end.split(content)[0]
            content = SPECIAL.sub("", content).strip()
            if content:
                found.append({"role": roles[mark.lower()], "content": content})
        said = {turn["role"] for turn in found}
        return found if {"user", "assistant"} <= said else []

    return parse


def _llama2(text: str) -> list[Message]:
    found: list[Message] = []
    text = text.strip()
    if not re.match(r"(<s>\s*)?\[INST\]", text):
        return []
    for piece in re.split(r"\[INST\]", text)[1:]:
        asked, _, answer = piece.partition("[/INST]")
        system = re.match(r"\s*<<SYS>>(.*?)<</SYS>>", asked, re.DOTALL)
        if system:
            asked = asked[system.end() :]
            if system[1].strip():
                found.append({"role": "system", "content": system[1].strip()})
        answer = re.sub(r"\s*(</s>)?\s*(<s>)?\s*$", "", answer)
        found.append({"role": "user", "content": asked.strip()})
        if answer.strip():
            found.append({"role": "assistant", "content": answer.strip()})
    return found if any(turn["role"] == "assistant" for turn in found) else []


CHAT = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}
FORMATS: tuple[tuple[str, str, Callable[[str], list[Message]]], ...] = (
    ("[INST]", "[INST]", _llama2),
    (
        "<|im_start|>",
        "<|im_start|>",
        _turns(r"<\|im_start\|>\s*(system|user|assistant)\n", CHAT, r"<\|im_end\|>"),
    ),
    (
        "### Human",
        "### Human:",
        _turns(r"### (Human|Assistant):", {"human": "user", "assistant": "assistant"}),
    ),
    (
        "Human",
        "\n\nHuman:",
        _turns(r"\n\n(Human|Assistant):", {"human": "user", "assistant": "assistant"}),
    ),
)
