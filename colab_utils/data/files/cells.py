"""Decode lists that a table holds as text in a cell."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

ROLES = ("role", "from")
NUMPY = re.compile(r"(?<=['\"])\s+(?=['\"])")  # ['oak' 'elm'] has no commas


def decode(raw: dict[Any, Any]) -> dict[Any, Any]:
    """Return the row with lists of messages and of tools in place of their text.

    The text is JSON, or Python's notation, which pandas writes into a CSV file. Other
    cells stay as they are: a prompt may begin with a bracket.

    >>> decode({"messages": '[{"role": "user", "content": "Who?"}]', "line": "[1]"})
    {'messages': [{'role': 'user', 'content': 'Who?'}], 'line': '[1]'}
    """
    found = {}
    for name, cell in raw.items():
        if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
            check = CHECKS.get(str(name).strip().lower())
            value = value_of(cell) if check else None
            if check and check(value):
                found[name] = value
    return raw | found if found else raw


def is_conversation(value: object) -> bool:
    """Return whether a value is a list of messages: objects with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and any(name in turn for name in ROLES)
            for turn in value
        )
    )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, dict)) and bool(value)


def _is_tools(value: object) -> bool:
    many = value if isinstance(value, list) else [value]
    return bool(many) and all(isinstance(tool, dict) for tool in many)


def value_of(cell: str) -> object:
    """Return the list or object in a text, in JSON or Python's notation, or None."""
    if cell.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(cell.strip())
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return ast.literal_eval(NUMPY.sub(", ", cell.strip()))
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


# For each column whose cells may hold a list, in lower case: whether a value is one.
CHECKS = {
    "conversations": is_conversation,
    "conversation": is_conversation,
    "messages": is_conversation,
    "prompt": is_conversation,
    "completion": is_conversation,
    "chosen": is_conversation,
    "rejected": is_conversation,
    "tools": _is_tools,
    **dict.fromkeys(("answers", "responses", "outputs", "completions"), _is_list),
    **dict.fromkeys(("choices", "options", "candidates"), _is_list),
}
