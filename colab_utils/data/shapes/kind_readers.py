"""Read the row of each kind from its columns, once it is known what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    BadRow,
    Message,
    Row,
)
from colab_utils.data.shapes import (
    preferences,
    ready_prompts,
    tool_calls,
    turns,
    values,
)
from colab_utils.data.shapes.columns import Plan


def _instruction(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> Row:
    names = plan.columns
    if "messages" in names:
        column = names["messages"]
        found = turns.messages_of(raw[column], column, notes, texts=True)
    else:
        column = names["prompt"]
        found = preferences.as_messages(raw[column], turns.USER, column, notes)
        answer = _answer(raw[names["answer"]], names["answer"], notes)
        if isinstance(raw[column], str) and found[0]["content"] != raw[column].strip():
            last = answer[-1]  # the prompt was cut, so the answer may end with a mark
            last["content"] = ready_prompts.without_end(last["content"] or "")
        found += answer
    if plan.more:
        found = _with_context(raw, plan, found, notes)
    row: Row = {"messages": turns.repaired(found, notes)}
    if "tools" in names:
        schemas = tool_calls.tools_of(raw[names["tools"]], notes)
        if schemas:
            row["tools"] = schemas
    return row


def _answer(value: object, column: object, notes: list[str]) -> list[Message]:
    """Return the messages of an answer; of several texts, the first is the answer."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]  # SQuAD
    if isinstance(value, list):
        if any(isinstance(one, dict) for one in value):
            return turns.messages_of(value, column, notes)
        if len(value) > 1:
            notes.append("only the first of several answers used")
        value = value[0] if value else None
    return [{"role": turns.ASSISTANT, "content": values.text(value, column)}]


def _with_context(
    raw: dict[Any, Any], plan: Plan, found: list[Message], notes: list[str]
) -> list[Message]:
    """Add the columns of a context, a system message and earlier turns."""
    names = plan.columns
    for name in plan.contexts:
        first = next((turn for turn in found if turn["role"] == turns.USER), None)
        if first:
            first["content"] += "\n\n" + values.text(raw[name], name)
    if "history" in names:
        found = _history(raw[names["history"]], names["history"], notes) + found
    if "system" in names:
        system = values.text(raw[names["system"]], names["system"])
        found = [{"role": turns.SYSTEM, "content": system}, *found]
    return found


def _history(value: object, column: object, notes: list[str]) -> list[Message]:
    value = values.decoded(value, column)
    if not isinstance(value, list):
        raise BadRow(f"{values.name(column)} is not a list of earlier turns")
    if any(isinstance(turn, dict) for turn in value):
        return turns.messages_of(value, column, notes)
    found: list[Message] = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(f"{values.name(column)} is not a list of pairs")
        for role, content in zip((turns.USER, turns.ASSISTANT), pair, strict=True):
            found.append({"role": role, "content": values.text(content, column)})
    return found


def _preference(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> Row:
    names = plan.columns
    prompt = raw[names["prompt"]] if "prompt" in names else None
    if "chosen" in names:
        good, bad = raw[names["chosen"]], raw[names["rejected"]]
        if "chosen score" in names:
            preferences.check_scores(raw, names)
    elif "first" in names:
        good, bad = preferences.by_verdict(raw, names)
    else:
        scores = raw.get(names.get("scores", names.get("ranks")))
        good, bad = preferences.best_and_worst(
            raw[names["answers"]], scores, "ranks" in names, notes
        )
    row = preferences.preference(prompt, good, bad, notes)
    if plan.more:
        row["prompt"] = _with_context(raw, plan, row["prompt"], notes)
    return row


def _middle(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> Row:
    parts = {}
    for part in ("prefix", "suffix"):
        cell, column = raw[plan.columns[part]], plan.columns[part]
        blank = cell is None or (isinstance(cell, str) and values.is_blank(cell))
        parts[part] = (cell or "") if blank else values.whole_text(cell, column)
    if not "".join(parts.values()).strip():
        raise BadRow("prefix and suffix are empty")
    column = plan.columns["middle"]
    middle = values.whole_text(raw[column], column)
    return {"prefix": parts["prefix"], "middle": middle, "suffix": parts["suffix"]}


def _labeled(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> Row:
    names = plan.columns
    text = values.text(raw[names["text"]], names["text"])
    if "second" in names:
        text += "\n" + values.text(raw[names["second"]], names["second"])
    return {"text": text, "label": values.label(raw[names["label"]], names["label"])}


def _raw_text(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> Row:
    name = plan.columns["text"]
    return {"text": values.whole_text(raw[name], name)}


READERS: dict[str, Callable[[dict[Any, Any], Plan, list[str]], Row]] = {
    INSTRUCTION: _instruction,
    PREFERENCE: _preference,
    MIDDLE: _middle,
    CLASSIFICATION: _labeled,
    COMPLETION: _raw_text,
}
