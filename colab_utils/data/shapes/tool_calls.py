"""Bring tools and their calls into the form that chat templates read.

A call is {"type": "function", "function": {"name": ..., "arguments": {...}}}, with its
`id` if it has one. A tool is {"type": "function", "function": {its JSON schema}}.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from colab_utils.data.schema import BadRow, Message
from colab_utils.data.shapes import values

# Parts of a message that call a tool or hold its result: Anthropic, Gemini, Bedrock.
CALL_PARTS = ("tool_use", "functionCall", "toolUse")
RESULT_PARTS = ("tool_result", "functionResponse", "toolResult")
IDS = ("id", "tool_use_id", "toolUseId")
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
    if identity := _id(call):
        made["id"] = identity
    return made


def _id(part: dict[str, Any]) -> str:
    key = next((key for key in IDS if not values.is_blank(part.get(key))), "")
    return values.text(part[key], "the id of a tool call") if key else ""


def parts_of(content: list[Any]) -> tuple[list[Any], list[Any], list[Message]]:
    """Return the other parts of a message, its calls, and the results of calls."""
    others: list[Any] = []
    calls: list[Any] = []
    results: list[Message] = []
    for part in content:
        if call := _part(part, CALL_PARTS):
            calls.append(call)
        elif result := _part(part, RESULT_PARTS):
            results.append(_result(result))
        else:
            others.append(part)
    return others, calls, results


def _part(part: object, kinds: tuple[str, ...]) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        return None
    if part.get("type") in kinds:
        return part
    return next((part[k] for k in kinds if isinstance(part.get(k), dict)), None)


def _result(part: dict[str, Any]) -> Message:
    """Return the message of a result: its content is text, or JSON."""
    content = part.get("content", part.get("response"))
    if isinstance(content, list) and all(
        isinstance(one, dict) and isinstance(one.get("text"), str) for one in content
    ):
        content = "".join(one["text"] for one in content)
    elif isinstance(content, (dict, list)):
        values.check_nested(content, "a tool result")
        content = values.as_json(content)
    made = {"role": "tool", "content": values.text(content, "a tool result")}
    if identity := _id(part):
        made["tool_call_id"] = identity
    if not values.is_blank(part.get("name")):
        made["name"] = values.text(part["name"], "name")
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
        if "input_schema" in schema:  # Anthropic
            schema = {**schema, "parameters": schema["input_schema"]}
            del schema["input_schema"]
        values.text(schema["name"], "the name of a tool")
        values.check_nested(schema, "a tool")
        yield {"type": "function", "function": schema}
