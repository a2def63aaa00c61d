"""Bring raw rows of the known formats into the schema."""

from __future__ import annotations

import itertools
import math
from typing import Any

from colab_utils.data import kinds
from colab_utils.data.schema import BadRow, Message, Row, escape

# For each format: the column of the prompt, and the columns that may hold the answer.
# They are tried in this order.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "messages": ("messages", ()),
    "conversations": ("conversations", ()),
    "prompt/completion": ("prompt", ("completion",)),
    "instruction/input/output": ("instruction", ("output", "response")),
    "question/answer": ("question", ("answer",)),
}
CONTEXTS = ("input", "context")  # appended to the first prompt
SYSTEMS = ("system", "system_prompt")  # become the system message
LABELS = ("group", "category")
USED = {name for prompt, answers in FORMATS.values() for name in (prompt, *answers)}
USED |= {*CONTEXTS, *SYSTEMS, *LABELS}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

# Starts of reasons for which `load` gives specific advice.
UNKNOWN_FORMAT = "its columns match no known format"
NOT_AN_OBJECT = "not an object with columns"


def to_row(raw: object, line: int) -> Row:
    """Bring a raw row into the schema; raises BadRow with the reason.

    `group` and `category` are kept if they are text or numbers.
    """
    row: Row = {"messages": to_messages(raw), "line": line}
    if isinstance(raw, dict):
        if group := _label(raw, "group"):
            row["group"] = group
        if category := _label(raw, "category"):
            row["category"] = category
    return row


def unused_columns(raw: dict[Any, object]) -> list[str]:
    """Return the columns that `to_row` does not read, or whose label is not text."""
    return [
        str(name)
        for name, value in raw.items()
        if name not in USED or (name in LABELS and not _can_be_label(value))
    ]


def _can_be_label(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _label(raw: dict[Any, object], column: str) -> str:
    value = raw.get(column)
    if _is_blank(value) or not _can_be_label(value):
        return ""
    return _text(str(value), column)


def to_messages(raw: object) -> list[Message]:
    """Bring a row of any known format into messages; raises BadRow with the reason.

    {"question": "2 + 2?", "answer": "4"} becomes
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}].
    """
    if not isinstance(raw, dict):
        raise BadRow(f"{NOT_AN_OBJECT}, but {type(raw).__name__}")
    prompt, answer = _find_columns(raw)
    if kind := kinds.by_label(raw):
        raise BadRow(kind)
    contexts: tuple[str, ...] = CONTEXTS
    if answer is None or isinstance(raw[prompt], list):
        turns = _conversation(raw[prompt])
        turns += _conversation(raw[answer]) if answer else []
        contexts = CONTEXTS[1:]
    else:
        turns = [
            {"role": "user", "content": _text(raw[prompt], prompt)},
            {"role": "assistant", "content": _text(raw[answer], answer)},
        ]
    _check_roles(turns)
    first = next(turn for turn in turns if turn["role"] == "user")
    for name in contexts:
        if not _is_blank(raw.get(name)):
            first["content"] += "\n\n" + _text(raw[name], name)
    system = next((name for name in SYSTEMS if not _is_blank(raw.get(name))), None)
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": _text(raw[system], system)})
    return turns


def _find_columns(raw: dict[Any, object]) -> tuple[str, str | None]:
    """Return the columns of the prompt and of the answer.

    The second is None if the first holds the whole conversation. A table merged from
    several has empty columns, so filled columns are tried first.
    """
    filled = {name for name, value in raw.items() if not _is_blank(value)}
    for names, (prompt, answers) in itertools.product(
        (filled, set(raw)), FORMATS.values()
    ):
        answer = next((name for name in answers if name in names), None)
        if prompt in names and (answer or not answers):
            return prompt, answer
    raise BadRow(kinds.by_columns(raw) or UNKNOWN_FORMAT)


def _is_blank(value: object) -> bool:
    """Return whether a cell is empty, or NaN: a table's missing numbers are NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _text(value: object, column: str) -> str:
    if _is_blank(value):
        raise BadRow(f"{column} is empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text, but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{column} is not valid UTF-8") from error
    return value.strip()


def _conversation(value: object) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadRow("a conversation must be a list of messages")
    turns = []
    for turn in value:
        role = turn.get("from") if _is_blank(turn.get("role")) else turn["role"]
        role = _text(role, "role")
        role = SHAREGPT_ROLES.get(role, role)
        if kind := kinds.by_turn(turn, role):
            raise BadRow(kind)
        if role not in ("system", "user", "assistant"):
            raise BadRow(f"unknown role {escape(role)[:40]}")
        content = turn.get("content")
        content = turn.get("value") if _is_blank(content) else content
        turns.append({"role": role, "content": _text(content, f"{role} message")})
    return turns


def _check_roles(turns: list[Message]) -> None:
    roles = [turn["role"] for turn in turns]
    without_system = roles[1:] if roles[:1] == ["system"] else roles
    pairs = len(without_system) // 2
    if not pairs or without_system != ["user", "assistant"] * pairs:
        raise BadRow("the roles must alternate, from user to assistant")
