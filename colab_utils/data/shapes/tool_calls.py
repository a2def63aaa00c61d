"""Bring tools and their calls into the form that chat templates read.

A call is {"type": "function", "function": {"name": ..., "arguments": {...}}}, with its
`id` if it has one. A tool is {"type": "function", "function": {its JSON schema}}.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from colab_utils.data.schema import BadRow
from colab_utils.data.shapes import values

CALLS = ("tool_calls", "function_call", "tool_call")  # keys of a message
ARGUMENTS = ("arguments", "parameters", "args", "input")


def calls_of(value: object) -> list[dict[str, Any]]:
    """Return the calls that a message holds: one, a list of them, or JSON text.

    Raises BadRow if a call has no name, or arguments that are not an object.
    """
    value = values.decoded(value, "a tool call")
    calls = value if isinstance(value, list) else [value]
    return [_call(call) for call in calls]


def are_calls(value: list[Any]) -> bool:
    """Return whether all of a list are calls with a name and arguments."""
    return all(
        isinstance(one, dict) and "name" in one and any(key in one for key in ARGUMENTS)
        for one in value
    )


def _call(call: object) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise BadRow(f"a tool call is not an object, but {type(call).__name__}")
    function = call.get("function", call)
    function = function if isinstance(function, dict) else call
    if values.is_blank(function.get("name")):
        raise BadRow("a tool call has no name")
    name = values.text(function["name"], "the name of a tool call")
    key = next((k for k in ARGUMENTS if not values.is_blank(function.get(k))), "")
    arguments = values.decoded(function.get(key) or {}, "arguments of a tool call")
    if not isinstance(arguments, dict):
        raise BadRow("the arguments of a tool call are not an object")
    values.check_nested(arguments, "arguments of a tool call")
    made: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    if not values.is_blank(call.get("id")):
        made["id"] = values.text(call["id"], "the id of a tool call")
    return made


def tools_of(value: object, notes: list[str]) -> list[dict[str, Any]]:
    """Return the tools of a row: a list, or JSON text; each with its schema.

    Raises BadRow for a list that holds something else. Notes tools without a name.
    """
    value = values.decoded(value, "tools")
    tools = value if isinstance(value, list) else [value]
    return list(_schemas(tools, notes))


def _schemas(tools: list[object], notes: list[str]) -> Iterable[dict[str, Any]]:
    for tool in tools:
        tool = values.decoded(tool, "a tool")
        if not isinstance(tool, dict):
            raise BadRow(f"a tool is not an object, but {type(tool).__name__}")
        schema = tool.get("function", tool)
        if not isinstance(schema, dict) or values.is_blank(schema.get("name")):
            notes.append("a tool without a name removed")
            continue
        values.text(schema["name"], "the name of a tool")
        values.check_nested(schema, "a tool")
        yield {"type": "function", "function": schema}
