"""Bring two answers to one question into a preference row."""

from __future__ import annotations

from typing import Any

from colab_utils.data import ready_prompts, turns, values
from colab_utils.data.schema import BadRow, Message

SAME = "chosen and rejected are the same"


def preference(
    prompt: object, chosen: object, rejected: object, notes: list[str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return (prompt, chosen, rejected) as messages; raises BadRow with the reason.

    Each may be text, a dialogue in one text, or a list of messages. The turns that both
    answers begin with belong to the prompt.
    """
    good = as_messages(chosen, turns.ASSISTANT, "chosen", notes)
    bad = as_messages(rejected, turns.ASSISTANT, "rejected", notes)
    if good == bad:
        raise BadRow(SAME)
    shared = 0
    while shared < min(len(good), len(bad)) and good[shared] == bad[shared]:
        shared += 1
    asked = good[:shared]
    good, bad = good[shared:], bad[shared:]
    if len(good) != 1 or len(bad) != 1 or good[0]["role"] != bad[0]["role"]:
        raise BadRow("chosen and rejected differ before their last answers")
    if good[0]["role"] != turns.ASSISTANT:
        raise BadRow("chosen and rejected do not end in an answer")
    if not values.is_blank(prompt):
        first = as_messages(prompt, turns.USER, "prompt", notes)
        if asked[: len(first)] != first and asked[-len(first) :] != first:
            asked = first + asked
    if not any(turn["role"] == turns.USER for turn in asked):
        raise BadRow("a preference without a prompt")
    whole = turns.repaired([*asked, good[0]], notes)
    return whole[:-1], good, bad


def as_messages(
    value: object, role: str, column: str, notes: list[str]
) -> list[Message]:
    """Return a cell as messages: a text is one message of `role`, or a dialogue."""
    if isinstance(value, str):
        dialogue = ready_prompts.cut(value)
        if dialogue:
            return dialogue[1]
        return [{"role": role, "content": values.text(value, column)}]
    if isinstance(value, list) and value:
        return turns.messages_of(value, column, notes)
    if isinstance(value, dict):
        return turns.messages_of([value], column, notes)
    return [{"role": role, "content": values.text(value, column)}]


def check_scores(raw: dict[Any, Any], good: object, bad: object) -> None:
    """Raise BadRow if the rejected answer has the higher score."""
    try:
        wrong = float(raw[bad]) > float(raw[good])
    except (TypeError, ValueError, OverflowError):
        return
    if wrong:
        raise BadRow("the score of rejected is higher than that of chosen")
