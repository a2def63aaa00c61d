"""Bring two answers to one question into a preference row.

The two answers are named (chosen and rejected), or a score or a verdict says which one
is better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from colab_utils.data.schema import BadRow, Message, Row
from colab_utils.data.shapes import ready_prompts, turns, values
from colab_utils.data.shapes.column_names import compact
from colab_utils.data.shapes.ways import RANK_KEYS, SCORE_KEYS

SAME = "chosen and rejected are the same"
TIE = "a tie: no answer is better"
# Keys of an answer that is an object.
ANSWER_KEYS = ("response", "answer", "completion", "output", "text", "content", "value")
# A verdict: the sign of the better column, or the sign after a word.
NAMED = re.compile(r"(?:model|response|answer|assistant|option|output)?[ _-]*([ab012])")


def preference(
    prompt: object, chosen: object, rejected: object, notes: list[str]
) -> Row:
    """Return a preference row; raises BadRow with the reason.

    Each cell may be text, a dialogue in one text, or a list of messages. The turns that
    both answers begin with belong to the prompt.
    """
    good = as_messages(chosen, turns.ASSISTANT, "chosen", notes)
    bad = as_messages(rejected, turns.ASSISTANT, "rejected", notes)
    if good == bad:
        raise BadRow(SAME)
    shared = 0
    while shared < min(len(good), len(bad)) and good[shared] == bad[shared]:
        shared += 1
    if not shared and len(bad) == 1 < len(good):
        shared, bad = len(good) - 1, [*good[:-1], *bad]  # without the turns before it
        if good[-1] == bad[-1]:
            raise BadRow(SAME)
    asked, good, bad = good[:shared], good[shared:], bad[shared:]
    good, bad = turns.joined(good, notes), turns.joined(bad, notes)
    for name, answer in (("chosen", good), ("rejected", bad)):
        if not answer or answer[-1]["role"] != turns.ASSISTANT:
            raise BadRow(f"{name} does not end in an answer")
    if len(good) != 1 or len(bad) != 1:
        raise BadRow("chosen and rejected differ before their last answers")
    if not values.is_blank(prompt):
        first = as_messages(prompt, turns.USER, "prompt", notes)
        if not _contains(asked, first):
            asked = first + asked
    if not any(turn["role"] == turns.USER for turn in asked):
        raise BadRow("a preference without a prompt")
    asked = [{k: v for k, v in turn.items() if k != "weight"} for turn in asked]
    whole = turns.repaired([*asked, good[0]], notes)
    if whole[-1] != good[0]:
        raise BadRow("the prompt does not end in a question")
    return {"prompt": whole[:-1], "chosen": good, "rejected": bad}


def _contains(asked: list[Message], first: list[Message]) -> bool:
    """Return whether the shared turns have the prompt in them already."""
    size = len(first)
    return any(asked[i : i + size] == first for i in range(len(asked) - size + 1))


def as_messages(
    value: object, role: str, column: object, notes: list[str]
) -> list[Message]:
    """Return a cell as messages: a text is one message of `role`, or a dialogue."""
    if isinstance(value, str):
        asks = role == turns.USER
        cut = ready_prompts.cut_prompt if asks else ready_prompts.cut_answer
        if dialogue := cut(value, notes):
            return dialogue
    elif isinstance(value, list):
        return turns.messages_of(value, column, notes)
    elif isinstance(value, dict) and "messages" in value:  # OpenAI's preferences
        notes.extend(f"{turns.KEY}{values.name(k)}" for k in value if k != "messages")
        return turns.messages_of(value["messages"], column, notes)
    elif isinstance(value, dict) and any(key in value for key in turns.ROLE_KEYS):
        return turns.messages_of([value], column, notes)
    return [{"role": role, "content": values.text(value, column)}]


def check_scores(raw: Mapping[Any, Any], names: Mapping[str, Any]) -> None:
    """Raise BadRow if the rejected answer has a higher score than the chosen one."""
    good, bad = (_number(raw[names[f"{one} score"]]) for one in ("chosen", "rejected"))
    if good < bad:
        raise BadRow("the score of rejected is higher than the score of chosen")


def by_verdict(
    raw: Mapping[Any, Any], names: Mapping[str, Any]
) -> tuple[object, object]:
    """Return (the better answer, the worse one) of two columns; raises BadRow.

    A score of each decides, or a column that names the better one.
    """
    first, second = raw[names["first"]], raw[names["second"]]
    if "first score" in names:
        a, b = (_number(raw[names[f"{one} score"]]) for one in ("first", "second"))
        if a == b:
            raise BadRow(TIE)
        return (first, second) if a > b else (second, first)
    better = _named(raw[names["better"]], names)
    return (first, second) if better == 0 else (second, first)


def _named(verdict: object, names: Mapping[str, Any]) -> int:
    """Return 0 if a verdict names the first of two columns, and 1 for the second."""
    said = str(verdict).strip().lower().removesuffix(".0")
    if "tie" in said or said in ("none", "both", "equal"):
        raise BadRow(TIE)
    signs = [_sign(names[one]) for one in ("first", "second")]
    if compact(names["first"]) == "humanrefa":  # SHP: 1 says that A is better
        signs = ["1", "0"]
    named = NAMED.fullmatch(said)
    if not named or named[1] not in signs:
        raise BadRow(f"the verdict {values.name(verdict)} names no answer")
    return signs.index(named[1])


def _sign(column: object) -> str:
    return compact(column)[-1]


def best_and_worst(
    answers: object, scores: object, ranked: bool, notes: list[str]
) -> tuple[object, object]:
    """Return the best and the worst of several answers; raises BadRow.

    `scores` is a list, or None if each answer is an object with its own score or rank.
    """
    found = values.objects(answers, "answers")
    if not isinstance(found, list) or len(found) < 2:
        raise BadRow("a preference needs two answers or more")
    numbers = values.decoded(scores, "scores")
    if numbers is None:
        numbers, ranked = _own_scores(found)
    if not isinstance(numbers, list) or len(numbers) != len(found):
        raise BadRow(f"there are {len(found)} answers, but not one score for each")
    order = sorted(range(len(found)), key=[_number(n) for n in numbers].__getitem__)
    worst, best = (order[-1], order[0]) if ranked else (order[0], order[-1])
    if _number(numbers[worst]) == _number(numbers[best]):
        raise BadRow(TIE)
    if len(found) > 2:
        notes.append("only the best and the worst of several answers used")
    return text_of(found[best], notes), text_of(found[worst], notes)


def _own_scores(answers: list[Any]) -> tuple[list[object], bool]:
    for keys, ranked in ((SCORE_KEYS, False), (RANK_KEYS, True)):
        for key in keys:
            if all(isinstance(one, dict) and key in one for one in answers):
                return [one[key] for one in answers], ranked
    raise BadRow("its answers have no scores")


def text_of(answer: object, notes: list[str]) -> object:
    """Return the text of an answer that may be an object, or None if it has none."""
    if not isinstance(answer, dict):
        return answer
    used = next((key for key in ANSWER_KEYS if answer.get(key)), None)
    read = (used, *SCORE_KEYS, *RANK_KEYS)
    notes.extend(f"{turns.KEY}{values.name(key)}" for key in answer if key not in read)
    return answer.get(used)


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise BadRow(f"the score {values.name(value)} is not a number")
    return number
