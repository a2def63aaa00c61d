"""Tool calls in conversations: in one form for all templates, or with a placeholder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from colab_utils.data.schema import Message, Row

# Mistral's templates take no other call ids.
CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
# A tool as `tools` describes it, as a JSON schema.
Tool = dict[str, Any]


def turns_of(row: Row) -> list[Message]:
    """Return all turns of a row; raw texts have none."""
    turns = [*row.get("messages", []), *row.get("prompt", [])]
    return [*turns, *row.get("chosen", []), *row.get("rejected", [])]


def uses_tools(row: Row) -> bool:
    """Return whether a row has tools, calls of tools, or results of them."""
    return bool(row.get("tools")) or any(map(_is_tool_turn, turns_of(row)))


def _is_tool_turn(turn: Message) -> bool:
    return turn["role"] == "tool" or bool(turn.get("tool_calls"))


def uniform(messages: Sequence[Message]) -> list[Message]:
    """Return messages with their tool calls as chat templates expect them.

    Arguments that are JSON text become the object. If a call's id is not nine letters
    or digits, all calls and results are numbered: Mistral's templates reject others.
    """
    if not any("tool_calls" in turn or turn["role"] == "tool" for turn in messages):
        return list(messages)
    turns = [_with_objects(turn) for turn in messages]
    ids = [call.get("id") for turn in turns for call in turn.get("tool_calls") or []]
    ids += [turn.get("tool_call_id") for turn in turns if turn["role"] == "tool"]
    good = all(isinstance(name, str) and CALL_ID.fullmatch(name) for name in ids)
    return turns if good else _numbered(turns)


def _with_objects(turn: Message) -> Message:
    """Return a turn in which the arguments of its calls are objects, not JSON text.

    It has a text, and no empty list of calls: some templates write None, and some
    take an empty list for a call.
    """
    turn = {**turn, "content": turn.get("content") or ""}
    if not turn.get("tool_calls"):
        return {name: value for name, value in turn.items() if name != "tool_calls"}
    calls = []
    for call in turn["tool_calls"]:
        function = dict(call["function"])
        function["arguments"] = _parsed(function.get("arguments", {}))
        calls.append({**call, "function": function})
    return {**turn, "tool_calls": calls}


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _numbered(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the calls' ids 000000001, 000000002, ...

    A result without a known id answers the first call that has no result yet.
    """
    turns: list[Message] = []
    new: dict[Any, str] = {}  # the new ids of the last turn with calls
    number = 0
    for turn in messages:
        if calls := turn.get("tool_calls"):
            names = [f"{number + i:09}" for i in range(1, len(calls) + 1)]
            number += len(calls)
            pairs = list(zip(calls, names, strict=True))
            new = {call.get("id") or name: name for call, name in pairs}
            turn = {**turn, "tool_calls": [{**c, "id": name} for c, name in pairs]}
        elif turn["role"] == "tool":
            old = turn.get("tool_call_id")
            key = old if old in new else next(iter(new), None)
            turn = {**turn, "tool_call_id": new.pop(key, f"{number:09}")}
        turns.append(turn)
    return turns


def with_text(turn: Message, text: str) -> Message:
    """Return a turn with another text, which is also in its calls."""
    calls = turn.get("tool_calls")
    if not calls:
        return {**turn, "content": text}
    function = {"name": text, "arguments": {text: text}}
    changed = {**turn, "tool_calls": [{**c, "function": function} for c in calls]}
    return {**changed, "content": text} if turn.get("content") else changed


def texts_of(value: Any) -> list[str]:
    """Return all texts of a message or of a tool's description, names included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for text in texts_of(list(pair))]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return []


def probe_tools(name: str, argument: str, result: str) -> tuple[list[Message], Tool]:
    """Return a conversation that calls a tool, and the tool."""
    function = {"name": name, "arguments": {"town": argument}}
    call = {"type": "function", "id": "000000001", "function": function}
    town = {"type": "string", "description": "The town."}
    tool: Tool = {
        "type": "function",
        "function": {
            "name": name,
            "description": "Look something up.",
            "parameters": {
                "type": "object",
                "properties": {"town": town},
                "required": ["town"],
            },
        },
    }
    turns: list[Message] = [
        {"role": "user", "content": "The user speaks."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {
            "role": "tool",
            "name": name,
            "tool_call_id": "000000001",
            "content": result,
        },
        {"role": "assistant", "content": "The assistant speaks."},
    ]
    return turns, tool
