"""Decode lists that a table holds as text in a cell."""

from __future__ import annotations

import ast
import json
from typing import Any

ROLES = ("role", "from")


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
            value = _value(cell) if check else None
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


def _is_tools(value: object) -> bool:
    many = value if isinstance(value, list) else [value]
    return bool(many) and all(isinstance(tool, dict) for tool in many)


def _value(cell: str) -> object:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(cell.strip())
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
}
