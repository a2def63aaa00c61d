"""Name the kinds of rows that can't be trained on as instructions, and say why.

Each reason begins with the kind, so that a report of rejected rows names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

UNPAIRED = "unpaired preference"
PREFERENCE = "preference"
RAW_TEXT = "raw text"
CLASSIFICATION = "classification"
MIDDLE = "fill in the middle"
TOOLS = "tool use"
PARTS = "content in parts"
# What to do with a dataset of each kind.
ADVICE = {
    UNPAIRED: "Delete the rows with bad answers, then the column label. If label is "
    "not a verdict on the answer, rename it",
    PREFERENCE: "To train on the better answers, rename chosen to completion, or to "
    "messages if it holds the whole conversation",
    RAW_TEXT: "Split each text into a question and its answer",
    CLASSIFICATION: "Rename text to prompt and label to completion",
    MIDDLE: "Rename them to a prompt and a completion",
    TOOLS: "Tools are not supported yet: keep only conversations without them",
    PARTS: "Write each content as one text; images and sound are not supported",
}
# Columns by which a kind is recognized if the row has no prompt with an answer.
COLUMNS = {
    PREFERENCE: ("chosen", "rejected"),
    MIDDLE: ("prefix", "middle", "suffix"),
    CLASSIFICATION: ("text", "label"),
    RAW_TEXT: ("text",),
}
TOOL_ROLES = (
    "tool",
    "function",
    "tool_call",
    "tool_response",
    "function_call",
    "function_response",
    "observation",
    "ipython",
)
CALLS = ("tool_calls", "function_call")


def by_columns(raw: Mapping[Any, object]) -> str | None:
    """Return the kind of a row without a prompt and an answer, and its columns."""
    for kind, columns in COLUMNS.items():
        if all(raw.get(name) is not None for name in columns):
            return f"{kind} (columns {', '.join(columns)})"
    return None


def by_label(raw: Mapping[Any, object]) -> str | None:
    """Return the reason if a row has a verdict on its answer: a label true or false.

    Training on such a row would also teach the bad answers.
    """
    label = raw.get("label")
    if isinstance(label, bool) or str(label).strip().lower() in ("true", "false"):
        return f"{UNPAIRED} (its label says whether the answer is good)"
    return None


def by_labels(labels: Iterable[object]) -> str | None:
    """Return the reason if the labels of a whole dataset are verdicts: 0 and 1."""
    found = {str(label).strip() for label in labels}
    if found and found <= {"0", "1", "0.0", "1.0"}:
        return f"{UNPAIRED} (all labels are 0 or 1)"
    return None


def by_turn(turn: Mapping[Any, object], role: str) -> str | None:
    """Return the reason if a turn calls a tool, is a tool's, or is not one text."""
    if role in TOOL_ROLES:
        return f"{TOOLS} (a message of the role {role})"
    call = next((name for name in CALLS if turn.get(name)), None)
    if call:
        return f"{TOOLS} ({call} in a message)"
    for content in (turn.get("content"), turn.get("value")):
        if isinstance(content, list) and all(isinstance(one, dict) for one in content):
            types = sorted({str(one.get("type", "?"))[:20] for one in content})
            return f"{PARTS} ({', '.join(map(ascii, types[:3]))})"
    return None
