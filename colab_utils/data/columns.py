"""Recognize what a row is by the names of its columns.

Datasets name the same thing in many ways. A name is compared without its case, spaces
and underscores, so `System Prompt` is `systemprompt`. In each list, the first name that
a row has is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    escape,
)

# A prompt and its answer, by the formats that name both. Any other pair comes later.
PAIRS = (
    ("prompt", ("completion",)),
    ("instruction", ("output", "response")),
    ("question", ("answer",)),
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What a column holds, and its names in the order in which they are tried.
CONVERSATIONS = _names(
    "messages conversations conversation dialogue dialog turns chat thread"
)
PROMPTS = _names(
    "prompt instruction instructions question query userprompt usermessage user human "
    "problem request task q"
)
# They are prompts only in a row without a column of PROMPTS.
INPUTS = _names("input inputs source text document article dialogue dialog content")
ANSWERS = _names(
    "completion output response answer outputs answers reply assistant gpt bot "
    "modelresponse expectedoutput solution target targets generation summary "
    "highlights a"
)
CONTEXTS = _names("input inputs context passage")  # appended to the first prompt
SYSTEMS = _names("system systemprompt systemmessage systeminstruction")
HISTORIES = _names("history")
TOOLS = _names("tools functions")
CHOSEN = _names("chosen chosenresponse responsechosen chosenanswer preferred")
REJECTED = _names(
    "rejected rejectedresponse responserejected rejectedanswer dispreferred"
)
PREFIXES = _names("prefix before codebefore leftcontext")
MIDDLES = _names("middle infill hole missing target canonicalsolution")
SUFFIXES = _names("suffix after codeafter rightcontext")
TEXTS = _names(
    "text content document code article body passage story rawcontent page markdown"
)
LABELED = _names(
    "text sentence review reviewtext reviewbody comment tweet content headline "
    "utterance message document title sentence1 premise question query prompt"
)
SECOND = {"sentence1": "sentence2", "premise": "hypothesis"}
CLASSES = _names(
    "labeltext labelname label labels sentiment class intent emotion topic stars "
    "rating category"
)
VERDICTS = _names("label")
META = _names("group category")  # kept with the row

Key = tuple[tuple[Any, type | None], ...]  # names and types of the cells; blank: None


@dataclass
class Plan:
    """How to read the rows of one set of columns: their kind, and what holds what."""

    kind: str
    columns: dict[str, Any]  # "prompt" -> the column's name in the row
    by: str  # the columns by which the kind was recognized
    unused: list[str]
    seen: int = 0
    ways: dict[tuple[str, str], int] = field(default_factory=dict)  # counted by read


def compact(name: object) -> str:
    """Return a column's name as it is compared: `System Prompt` is `systemprompt`."""
    return "".join(sign for sign in str(name).lower() if sign.isalnum())


def plans(key: Key) -> Iterator[Plan]:
    """Yield each way to read a row with these columns, the likeliest first.

    A table that was merged from several has empty columns, so filled columns are tried
    first.
    """
    every: dict[str, Any] = {}
    types: dict[str, type | None] = {}
    # Of `Answer` and `answer`, the one that is filled is used, then the lower-case one.
    for name, cell in sorted(key, key=lambda c: (bool(c[1]), compact(c[0]) == c[0])):
        every[compact(name)], types[compact(name)] = name, cell
    filled = {name: column for name, column in every.items() if types[name]}
    lists = {name: column for name, column in filled.items() if types[name] is list}
    for names, turns in ((filled, lists), (every, every)):
        for kind, found in _candidates(names, every, turns):
            yield _plan(kind, found, every, types, key)


def _candidates(
    names: dict[str, Any], every: dict[str, Any], lists: dict[str, Any]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (kind, {part: compact name}) for each way to read the columns `names`."""

    def first(options: tuple[str, ...], where: dict[str, Any] = names) -> str:
        return next((name for name in options if name in where), "")

    prompt = first(PROMPTS)
    if (good := first(CHOSEN)) and (bad := first(REJECTED)):
        found = {"chosen": good, "rejected": bad}
        if asked := prompt or first(INPUTS):
            found = {"prompt": asked, **found}
        yield PREFERENCE, found
    middle = first(MIDDLES)
    before, after = first(PREFIXES, every), first(SUFFIXES, every)
    if not before and after and middle == "canonicalsolution":
        before = prompt
    if before and middle and after:
        yield MIDDLE, {"prefix": before, "middle": middle, "suffix": after}
    if turns := first(CONVERSATIONS, lists):
        yield INSTRUCTION, {"messages": turns}
    for asked, answers in PAIRS:
        if asked in names and (answer := first(answers)):
            yield INSTRUCTION, {"prompt": asked, "answer": answer}
    if (asked := prompt or first(INPUTS)) and (answer := first(ANSWERS)):
        yield INSTRUCTION, {"prompt": asked, "answer": answer}
    if (text := first(LABELED)) and (label := first(CLASSES)):
        yield CLASSIFICATION, {"text": text, "label": label}
    if text := first(TEXTS):
        yield COMPLETION, {"text": text}


def _plan(
    kind: str,
    found: dict[str, str],
    every: dict[str, Any],
    types: dict[str, type | None],
    key: Key,
) -> Plan:
    """Add the columns that go with any row of the kind: context, system, labels."""
    used = dict(found)

    def add(part: str, options: tuple[str, ...]) -> None:
        taken = used.values()
        name = next((n for n in options if types.get(n) and n not in taken), "")
        if name:
            used[part] = name

    if kind in (INSTRUCTION, PREFERENCE):
        for name in CONTEXTS if "messages" not in found else CONTEXTS[2:]:
            add(f"context {name}", (name,))
        add("system", SYSTEMS)
        add("history", HISTORIES)
    if kind == INSTRUCTION:
        add("tools", TOOLS)
        add("verdict", VERDICTS)
    if found.get("text") in SECOND:
        add("second", (SECOND[found["text"]],))
    for name in META:
        if types.get(name) in (str, int, float, bool):
            add(name, (name,))
    columns = {part: every[name] for part, name in used.items()}
    taken = list(columns.values())
    unused = [str(name) for name, cell in key if cell and name not in taken]
    names = [escape(str(columns[part]))[:40] for part in found]
    by = "by its column " if len(names) == 1 else "by its columns "
    by += " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return Plan(kind, columns, by, unused)
