"""Convert rows of one kind into rows of another where that makes sense.

`convert` changes one row. `middles` makes several rows of one text, and `pair` and
`pair_scored` make one row of several answers.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
    BadRow,
    Row,
    kind_of,
)

SHORTEST = 20  # characters of a text from which a middle is cut
WORD = re.compile(r"\s*\S+")
LINE = re.compile(r"[^\n]*\n|[^\n]+$")


def convert(row: Row, kind: str) -> Row:
    """Return a row as one of another kind; raises BadRow if it can't be one."""
    found = kind_of(row)
    if found == kind:
        return row
    make = CONVERTERS.get((found, kind))
    if make is None:
        raise BadRow(f"a row of the kind {found} can't become one of the kind {kind}")
    return _labeled(make(row), row)


def _labeled(made: Row, row: Row) -> Row:
    """Return a new row with the line and the labels of the row that it is made of."""
    for name in ("line", "group", "category"):
        if name in row:
            made[name] = row[name]
    return made


def better_answer(row: Row) -> Row:
    """Return a preference row as an instruction row with the chosen answer."""
    return {"messages": [*row["prompt"], *row["chosen"]]}


def ask_for_label(row: Row) -> Row:
    """Return a labeled row as an instruction row: the text asks, the label answers."""
    turns = (("user", row["text"]), ("assistant", row["label"]))
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def answer_as_label(row: Row) -> Row:
    """Return an instruction row of one question as a labeled row.

    Raises BadRow for a conversation, and for a row with a system message.
    """
    turns = row["messages"]
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise BadRow("only one question with one answer can become a labeled row")
    if not turns[1]["content"] or "tool_calls" in turns[1]:
        raise BadRow("a tool call can't become a label")
    return {"text": turns[0]["content"], "label": turns[1]["content"]}


def whole_text(row: Row) -> Row:
    """Return a row with a middle as raw text."""
    return {"text": row["prefix"] + row["middle"] + row["suffix"]}


def without_label(row: Row) -> Row:
    """Return the text of a labeled row as raw text."""
    return {"text": row["text"]}


def cut_middle(row: Row, seed: int = 0) -> Row:
    """Return a raw text as a row with a middle, drawn at random from `seed` and line.

    The middle lies between two random places, as in Bavarian et al. 2022 ("Efficient
    training of language models to fill in the middle", section 3). The places are
    starts of lines if the text has 5 lines or more, else starts of words. Raises BadRow
    for a text that is too short.
    """
    text = row["text"]
    pieces = LINE.findall(text)
    if len(pieces) < 5:
        pieces = WORD.findall(text.rstrip())
        pieces.append(text[len(text.rstrip()) :])
    if len(text.strip()) < SHORTEST or len(pieces) < 3:
        raise BadRow(f"a text shorter than {SHORTEST} characters has no middle")
    draw = random.Random(f"{seed} {row.get('line', 0)} {len(text)}")
    for _ in range(10):
        first, last = sorted(draw.sample(range(len(pieces) + 1), 2))
        parts = (pieces[:first], pieces[first:last], pieces[last:])
        prefix, middle, suffix = map("".join, parts)
        if middle.strip() and (prefix.strip() or suffix.strip()):
            return {"prefix": prefix, "middle": middle, "suffix": suffix}
    raise BadRow("a text that is nearly empty has no middle")


CONVERTERS: dict[tuple[str, str], Callable[[Row], Row]] = {
    (PREFERENCE, INSTRUCTION): better_answer,
    (CLASSIFICATION, INSTRUCTION): ask_for_label,
    (INSTRUCTION, CLASSIFICATION): answer_as_label,
    (MIDDLE, COMPLETION): whole_text,
    (CLASSIFICATION, COMPLETION): without_label,
    (COMPLETION, MIDDLE): cut_middle,
}


def middles(rows: Iterable[Row], each: int = 1, seed: int = 0) -> list[Row]:
    """Return `each` rows with a middle for each raw text; short texts have none."""
    found: list[Row] = []
    for row in rows:
        for number in range(each):
            try:
                made = cut_middle(row, seed * each + number)
            except BadRow:
                break
            found.append(_labeled(made, row))
    return found


def pair(good: Sequence[Row], bad: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return preference rows of good and bad answers to one prompt, and the others.

    The first good answer to a prompt is compared with its first bad one, and so on.
    """
    answers: dict[str, list[Row]] = {}
    for row in reversed(bad):
        answers.setdefault(_asked(row), []).append(row)
    paired: list[Row] = []
    alone: list[Row] = []
    for row in good:
        worse = answers.get(_asked(row), [])
        if worse and worse[-1]["messages"][-1] != row["messages"][-1]:
            paired.append(_preference(row, worse.pop()))
        else:
            alone.append(row)
    return paired, alone + [row for rows in answers.values() for row in rows]


def pair_scored(rows: Iterable[tuple[Row, float]]) -> list[Row]:
    """Return a preference row for each prompt: its best answer against its worst.

    `rows` are instruction rows with a score of the answer. A prompt with one answer, or
    with equal scores, has no row.
    """
    prompts: dict[str, list[tuple[Row, float]]] = {}
    for row, score in rows:
        prompts.setdefault(_asked(row), []).append((row, score))
    made: list[Row] = []
    for answers in prompts.values():
        best = max(answers, key=lambda one: one[1])
        worst = min(answers, key=lambda one: one[1])
        if best[1] > worst[1] and best[0]["messages"][-1] != worst[0]["messages"][-1]:
            made.append(_preference(best[0], worst[0]))
    return made


def _preference(good: Row, bad: Row) -> Row:
    *prompt, chosen = good["messages"]
    made: Row = {
        "prompt": prompt,
        "chosen": [chosen],
        "rejected": bad["messages"][-1:],
    }
    return _labeled(made, good)


def _asked(row: Row) -> str:
    return json.dumps(row["messages"][:-1])
