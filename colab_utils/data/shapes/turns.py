"""Bring the turns of a conversation into messages, and repair what is safe to repair.

Each repair is noted: `load` prints how many rows it changed.
"""

from __future__ import annotations

from typing import Any

from colab_utils.data.schema import BadRow, Message
from colab_utils.data.shapes import tool_calls, values
from colab_utils.data.shapes.column_names import MASKS, WEIGHTS, compact

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
CALL = "a tool call"  # a turn of its own, as ShareGPT has it
ROLES = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human", "prompter", "customer", "question"), USER),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "model", "ai"), ASSISTANT),
    **dict.fromkeys(("chatbot", "answer", "agent"), ASSISTANT),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), TOOL),
    **dict.fromkeys(("tool_response", "function_response", "tool_result"), TOOL),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), CALL),
}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
USED = {*ROLE_KEYS, *CONTENT_KEYS, *tool_calls.CALLS, "tool_call_id"}
KEY = "key: "  # the start of a note on a key that is not used


def messages_of(
    value: object, column: object, notes: list[str], texts: bool = False
) -> list[Message]:
    """Return a list of turns as messages; raises BadRow with the reason.

    With `texts`, a list of texts is read as questions and answers in turn.
    """
    value = values.objects(value, column)
    if isinstance(value, list) and not value:
        raise BadRow(f"{values.name(column)} is empty")
    if not isinstance(value, list):
        raise BadRow("a conversation must be a list of messages")
    found: list[Message] = []
    if isinstance(value[0], str) and value[0].lstrip().startswith("{"):
        value = [values.decoded(one, column) for one in value]
    if texts and isinstance(value[0], str) and len(value) % 2 == 0:
        notes.append("a list of texts read as questions and answers in turn")
        value = [
            {"role": (USER, ASSISTANT)[i % 2], "content": text}
            for i, text in enumerate(value)
        ]
    for turn in value:
        if not isinstance(turn, dict):
            raise BadRow("a conversation must be a list of messages")
        if len(turn) == 2 and (message := _plain(turn)):
            found.append(message)
        else:
            found += _turn(turn, notes)
    return found


def _plain(turn: dict[Any, Any]) -> Message | None:
    """Return the message of a turn that has only a usual role and a text."""
    role, content = turn.get("role"), turn.get("content")
    if role.__class__ is not str or content.__class__ is not str:
        return None
    if role not in (USER, ASSISTANT, SYSTEM) or not content.strip():
        return None
    return {"role": role, "content": values.text(content, f"{role} message")}


def _turn(turn: dict[Any, Any], notes: list[str]) -> list[Message]:
    role_key = next((k for k in ROLE_KEYS if not values.is_blank(turn.get(k))), "")
    if not role_key:
        turn = {str(key).lower(): value for key, value in turn.items()}
        role_key = next((k for k in ROLE_KEYS if not values.is_blank(turn.get(k))), "")
    if not role_key and (pair := _pair(turn, notes)):
        return pair
    named = values.text(turn.get(role_key), "role")
    role = ROLES.get(named.lower().replace("-", "_").replace(" ", "_"))
    if not role:
        raise BadRow(f"unknown role {values.name(named)}")
    key = next((k for k in CONTENT_KEYS if not values.is_blank(turn.get(k))), "")
    content = turn.get(key)
    _note_keys(turn, {role_key, key}, role, notes)
    if role == CALL:
        calls = tool_calls.calls_of(content if key else _calls(turn))
        return [{"role": ASSISTANT, "content": None, "tool_calls": calls}]
    if role == SYSTEM and not key:
        notes.append("an empty system message removed")
        return []
    called = _calls(turn) if role == ASSISTANT else None
    results: list[Message] = []
    if isinstance(content, list) and role in (USER, ASSISTANT):
        content, calls, results = tool_calls.parts_of(content)
        called = called or calls
    if results and not content:
        return results
    message: Message = {"role": role}
    silent = called and values.is_blank(content)
    message["content"] = None if silent else content_of(content, role)
    if called:
        message["tool_calls"] = tool_calls.calls_of(called)
    if role == ASSISTANT and not _trained(turn):
        message["weight"] = 0
    if role == TOOL:
        for name in ("tool_call_id", "name"):
            if not values.is_blank(turn.get(name)):
                message[name] = values.text(turn[name], name)
    return [*results, message]


def _pair(turn: dict[Any, Any], notes: list[str]) -> list[Message]:
    """Return both messages of a turn such as {"human": "Who?", "assistant": "Me."}."""
    found: dict[str, Any] = {}
    for key, value in turn.items():
        role = ROLES.get(str(key).lower(), "")
        if role in (USER, ASSISTANT) and not values.is_blank(value):
            found.setdefault(role, value)
        elif not values.is_blank(value):
            notes.append(f"{KEY}{values.name(key)}")
    if set(found) != {USER, ASSISTANT}:
        return []
    return [
        {"role": role, "content": content_of(found[role], role)}
        for role in (USER, ASSISTANT)
    ]


def _calls(turn: dict[Any, Any]) -> object:
    return next(
        (turn[k] for k in tool_calls.CALLS if not values.is_blank(turn.get(k))), None
    )


def _note_keys(
    turn: dict[Any, Any], read: set[str], role: str, notes: list[str]
) -> None:
    """Note the filled keys of a turn that are not used."""
    for key, value in turn.items():
        weight = compact(key) in WEIGHTS + MASKS
        if weight and role != ASSISTANT and values.flag(value) == _trains(key):
            notes.append(f"{KEY}{key} of a {role} message")
        used = key in USED or weight or (key == "name" and role == TOOL)
        other = key in ROLE_KEYS + CONTENT_KEYS and key not in read
        if (not used or other) and not values.is_blank(value):
            notes.append(f"{KEY}{values.name(key)}")


def _trained(turn: dict[Any, Any]) -> bool:
    """Return whether the flags of an answer say that it is trained."""
    trained = True
    for key, value in turn.items():
        if key in ROLE_KEYS + CONTENT_KEYS or value is None:
            continue
        if key == "train_detail":
            raise BadRow("train_detail: a part of an answer can't be trained alone")
        if compact(key) in WEIGHTS + MASKS:
            said = values.flag(value)
            if said is None:
                raise BadRow(f"{values.name(key)} of a message is not 0 or 1")
            trained &= said == _trains(key)
    return trained


def _trains(key: object) -> bool:
    """Return the value of a flag that says that a message is trained."""
    return compact(key) in WEIGHTS


def content_of(value: object, role: str) -> str:
    """Return the text of a message; parts of type text are joined."""
    if isinstance(value, dict) and "parts" in value:
        value = value["parts"]
    if isinstance(value, dict) and "type" in value:
        value = [value]
    if isinstance(value, list) and all(isinstance(part, (dict, str)) for part in value):
        return values.text("".join(map(_part, value)), f"{role} message")
    if role == TOOL and isinstance(value, (dict, list)):
        values.check_nested(value, "tool message")
        return values.as_json(value)
    return values.text(value, f"{role} message")


def _part(part: dict[Any, Any] | str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    kind = values.name(part.get("type", "?"))
    raise BadRow(f"content in parts: {kind} is not text")


def repaired(turns: list[Message], notes: list[str]) -> list[Message]:
    """Return turns in an order that templates accept; raises BadRow if it can't be had.

    System messages at the start are joined, answers before the first question and
    questions after the last answer are removed, and messages of one role in a row are
    joined.
    """
    if _in_order(turns):
        return turns
    start = 0
    while start < len(turns) and turns[start]["role"] == SYSTEM:
        start += 1
    system, rest = turns[:start], turns[start:]
    if len(system) > 1:
        texts = list(dict.fromkeys(turn["content"] for turn in system))
        system = [{"role": SYSTEM, "content": "\n\n".join(texts)}]
        notes.append("system messages joined")
    asked = next((i for i, turn in enumerate(rest) if turn["role"] == USER), len(rest))
    if asked < len(rest) and any(turn["role"] == ASSISTANT for turn in rest[:asked]):
        notes.append("an answer before the first question removed")
        rest = rest[asked:]
    end = len(rest)
    while end and rest[end - 1]["role"] in (USER, TOOL):
        end -= 1
    if 0 < end < len(rest):
        last = "question" if rest[-1]["role"] == USER else "tool result"
        notes.append(f"a {last} after the last answer removed")
        rest = rest[:end]
    rest = joined(rest, notes)
    _check(rest)
    return system + rest


def _in_order(turns: list[Message]) -> bool:
    """Return whether questions and answers alternate, and all answers are trained."""
    start = 1 if turns and turns[0]["role"] == SYSTEM else 0
    if len(turns) == start or (len(turns) - start) % 2:
        return False
    role = USER
    for turn in turns[start:]:
        if turn["role"] != role or len(turn) > 2:
            return False
        role = ASSISTANT if role == USER else USER
    return True


def joined(turns: list[Message], notes: list[str]) -> list[Message]:
    """Join messages of one role in a row; raises BadRow if only one is trained."""
    found: list[Message] = []
    for turn in turns:
        last = found[-1] if found else {}
        if turn["role"] != last.get("role") or turn["role"] in (SYSTEM, TOOL):
            found.append(turn)
            continue
        if turn.get("weight") != last.get("weight"):
            raise BadRow("two answers in a row, of which only one is trained")
        texts = [t["content"] for t in (last, turn) if t["content"]]
        both = {**last, "content": "\n\n".join(texts) or None}
        if calls := last.get("tool_calls", []) + turn.get("tool_calls", []):
            both["tool_calls"] = calls
        if len(texts) > 1:
            notes.append(f"{turn['role']} messages in a row joined")
        found[-1] = both
    return found


def _check(turns: list[Message]) -> None:
    """Raise BadRow if the roles don't alternate or no answer is trained."""
    last = ""
    for turn in turns:
        role = turn["role"]
        if role == SYSTEM:
            raise BadRow("a system message after the first question")
        if role == TOOL and last not in (ASSISTANT, TOOL):
            raise BadRow("a tool result that follows no answer")
        if not last and role != USER:
            break
        last = role
    if turns and not last:
        raise BadRow("no question: there are only answers and system messages")
    if last != ASSISTANT:
        raise BadRow("the roles must alternate, from user to assistant")
    if all(turn.get("weight") == 0 for turn in turns if turn["role"] == ASSISTANT):
        raise BadRow("no answer is trained: the weight of each is 0")
