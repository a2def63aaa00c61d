"""Read the rows of each kind from their columns, once it is known what they hold.

A raw row with several answers to its prompt becomes a row for each.
"""

from __future__ import annotations

import hashlib
import json
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
    middle_marks,
    options,
    preferences,
    ready_prompts,
    tool_calls,
    turns,
    values,
)
from colab_utils.data.shapes.column_names import TEXT_CONTEXTS
from colab_utils.data.shapes.columns import Plan

UNUSED = "column: "  # the start of a note on a column that is not used
NOTHING = ("nan", "none", "null", "n/a", "<na>", "<noinput>")  # an empty cell as text


def _instruction(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> list[Row]:
    names = plan.columns
    if "messages" in names:
        column = names["messages"]
        found = [turns.messages_of(raw[column], column, notes, texts=True)]
    else:
        column = names["prompt"]
        prompt, answer = raw[column], raw[names["answer"]]
        both = isinstance(prompt, str) and isinstance(answer, str)
        if both and middle_marks.begins(prompt):
            return [middle_of(prompt + answer)]
        if plan.options:
            answer = options.answer_of(answer, _options(raw, plan), notes)
        found = _asked_and_answered(prompt, answer, plan, notes)
    if plan.more:
        found = [_with_context(raw, plan, one, notes) for one in found]
    rows: list[Row] = [{"messages": turns.repaired(one, notes)} for one in found]
    if "tools" in names:
        schemas = tool_calls.tools_of(raw[names["tools"]], notes)
        for row in rows if schemas else []:
            row["tools"] = schemas
    if len(rows) > 1:
        notes.append("several answers to a prompt, a row for each")
        made = json.dumps(rows, sort_keys=True).encode()
        for row in rows:
            row["group"] = f"answers {hashlib.sha256(made).hexdigest()[:12]}"
    return rows


def _asked_and_answered(
    prompt: object, answer: object, plan: Plan, notes: list[str]
) -> list[list[Message]]:
    """Return the messages of a prompt with each of its answers."""
    column, key = plan.columns["prompt"], plan.columns["answer"]
    if prompt.__class__ is answer.__class__ is str and ready_prompts.is_plain(prompt):
        question = {"role": turns.USER, "content": values.text(prompt, column)}
        return [[question, *_answers(answer, key, notes)[0]]]  # nearly all rows
    asked = preferences.as_messages(prompt, turns.USER, column, notes)
    answers = _answers(answer, key, notes)
    if isinstance(prompt, str) and not asked[0]["content"].startswith(prompt.strip()):
        for one in answers:  # the prompt was cut, so an answer may end with a mark
            one[-1]["content"] = ready_prompts.without_end(one[-1]["content"] or "")
    return [[*map(dict, asked), *one] for one in answers]


def _answers(value: object, column: object, notes: list[str]) -> list[list[Message]]:
    """Return the messages of each different answer in a cell."""
    if value.__class__ is str:
        return [[{"role": turns.ASSISTANT, "content": values.text(value, column)}]]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]  # SQuAD
    cells = value if isinstance(value, list) else [value]
    objects = [cell for cell in cells if isinstance(cell, dict)]
    if any(key in one for one in objects for key in turns.ROLE_KEYS):
        return [turns.messages_of(cells, column, notes)]
    if objects and tool_calls.are_calls(cells):
        calls = tool_calls.calls_of(cells)
        return [[{"role": turns.ASSISTANT, "content": None, "tool_calls": calls}]]
    filled = [preferences.text_of(cell, notes) or cell for cell in cells]
    filled = [cell for cell in filled if not values.is_blank(cell)] or [None]
    if 0 < len(filled) < len(cells):
        notes.append("an empty answer of several removed")
    texts = dict.fromkeys(values.text(cell, column) for cell in filled)
    return [[{"role": turns.ASSISTANT, "content": text}] for text in texts]


def _with_context(
    raw: dict[Any, Any], plan: Plan, found: list[Message], notes: list[str]
) -> list[Message]:
    """Add the columns of a context, of options, a system message and earlier turns."""
    names = plan.columns
    first = next((turn for turn in found if turn["role"] == turns.USER), None)
    for part, name in names.items():
        if first and part.startswith("context "):
            if text := _context(raw[name], name, part, first["content"]):
                first["content"] += f"\n\n{text}"
            else:
                notes.append(f"{UNUSED}{values.name(name)}")
    if first and plan.options:
        first["content"] += f"\n\n{options.as_text(_options(raw, plan))}"
    if "history" in names:
        found = _history(raw[names["history"]], names["history"], notes) + found
    if "system" in names:
        cell = raw[names["system"]]
        nested = isinstance(cell, (list, dict))
        read = turns.content_of if nested else values.text
        system = read(cell, names["system"])
        found = [{"role": turns.SYSTEM, "content": system}, *found]
    return found


def _options(raw: dict[Any, Any], plan: Plan) -> options.Options:
    return options.options_of({name: raw[name] for name in plan.options})


def _context(cell: object, name: object, part: str, prompt: str) -> str:
    """Return the text of a context, or "" if it isn't one.

    pandas writes an empty cell as the text nan. A column such as `text` or `document`
    may also hold the whole prompt, or the name of a file.
    """
    if isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        cell = "\n\n".join(cell)
    text = values.text(cell, name)
    if text.lower() in NOTHING:
        return ""
    if part.removeprefix("context ") in TEXT_CONTEXTS:
        return "" if prompt in text or text in prompt or " " not in text else text
    return text


def _history(value: object, column: object, notes: list[str]) -> list[Message]:
    value = values.decoded(value, column)
    if not isinstance(value, list):
        raise BadRow(f"{values.name(column)} is not a list of earlier turns")
    if any(isinstance(turn, dict) for turn in value):
        return turns.messages_of(value, column, notes)
    found: list[Message] = []
    if all(isinstance(turn, str) for turn in value) and len(value) % 2 == 0:
        value = list(zip(value[::2], value[1::2], strict=True))
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(f"{values.name(column)} is not a list of pairs")
        for role, content in zip((turns.USER, turns.ASSISTANT), pair, strict=True):
            found.append({"role": role, "content": values.text(content, column)})
    return found


def _preference(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> list[Row]:
    names = plan.columns
    prompt = raw[names["prompt"]] if "prompt" in names else None
    if "chosen" in names:
        good, bad = raw[names["chosen"]], raw[names["rejected"]]
        if "chosen score" in names:
            preferences.check_scores(raw, names)
    elif "first" in names:
        good, bad = preferences.by_verdict(raw, names)
    elif "best first" in names:
        several = raw[names["best first"]]
        good, bad = preferences.best_and_worst(
            several, [*range(len(several))], True, notes
        )
    else:
        scores = raw.get(names.get("scores", names.get("ranks")))
        good, bad = preferences.best_and_worst(
            raw[names["answers"]], scores, "ranks" in names, notes
        )
    row = preferences.preference(prompt, good, bad, notes)
    if plan.more:
        row["prompt"] = _with_context(raw, plan, row["prompt"], notes)
    return [row]


def _middle(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> list[Row]:
    parts = {}
    for part in ("prefix", "suffix"):
        cell, column = raw[plan.columns[part]], plan.columns[part]
        blank = cell is None or (isinstance(cell, str) and values.is_blank(cell))
        parts[part] = (cell or "") if blank else values.whole_text(cell, column)
    column = plan.columns["middle"]
    parts["middle"] = values.whole_text(raw[column], column)
    return [_checked(parts)]


def middle_of(text: str) -> Row:
    """Return a text with marks of fill-in-the-middle as a row; raises BadRow."""
    return _checked(middle_marks.cut(text))


def _checked(parts: dict[str, str]) -> Row:
    """Return a row with a middle; raises BadRow if there is nothing around it."""
    if not (parts["prefix"] + parts["suffix"]).strip():
        raise BadRow("prefix and suffix are empty")
    middle = values.whole_text(parts["middle"], "middle")
    return {"prefix": parts["prefix"], "middle": middle, "suffix": parts["suffix"]}


def _labeled(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> list[Row]:
    names = plan.columns
    text = values.text(raw[names["text"]], names["text"])
    if "second" in names:
        text += "\n" + values.text(raw[names["second"]], names["second"])
    return [{"text": text, "label": values.label(raw[names["label"]], names["label"])}]


def _raw_text(raw: dict[Any, Any], plan: Plan, notes: list[str]) -> list[Row]:
    """Return the text of a row as raw text; `formats` looks for marks in it."""
    name = plan.columns["text"]
    return [{"text": values.whole_text(raw[name], name)}]


READERS: dict[str, Callable[[dict[Any, Any], Plan, list[str]], list[Row]]] = {
    INSTRUCTION: _instruction,
    PREFERENCE: _preference,
    MIDDLE: _middle,
    CLASSIFICATION: _labeled,
    COMPLETION: _raw_text,
}
