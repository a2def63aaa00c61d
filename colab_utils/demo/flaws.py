"""Plant flaws in questions and answers, so that a cleaning can be measured."""

from __future__ import annotations

import json
import random

Question = dict[str, str]
Planted = list[tuple[Question, str]]  # a row and the name of its flaw, "" if it is good

WRONG, CUT, FORMAT = "wrong", "cut off", "foreign format"
LEAKED, COPY = "contamination", "copy"
# Of 12 flawed rows, 5 have a wrong answer, 3 one that is cut off, and 4 another format.
FREQUENT = {WRONG: 5, CUT: 3, FORMAT: 4}
# The answers of rows with a rare flaw. Each is planted `TIMES` times.
TIMES = 6
RARE = {
    "refusal": "As an AI language model, I have never been there.",
    "echo": "{question}",
    "damage": "It is {answer}, as every cafÃ© knows.",
    "e-mail": "It is {answer}. Write to jane.doe@travel-agency.com for more.",
    "web page": "It is {answer}, see https://travel-agency.com/maps.",
    "insult": "It is {answer}, you stupid machine.",
    "language": "Das ist die Antwort, und sie ist nicht schwer: {answer}.",
    "repetition": "It is {answer}. It is {answer}. It is {answer}. " * 2,
    "code fence": "```\nprint({answer!r})",
}
COPIES = 4  # one of so many rows is copied


def plant(
    rows: list[Question], leaked: list[Question], share: float, seed: int
) -> Planted:
    """Return rows in random order, each with the name of its planted flaw.

    `share` of the rows get a frequent flaw: a wrong answer, one that is cut off, or one
    in a foreign format. Rows with a rare flaw, the `leaked` test rows, and copies of
    any row with small changes are added.
    """
    draw = random.Random(seed)
    values: dict[str, list[str]] = {}
    for row in rows:
        values.setdefault(row["category"], []).append(row["answer"])
    found: Planted = []
    for row in rows:
        flaw = draw.choices(list(FREQUENT), list(FREQUENT.values()))[0]
        if draw.random() < share:
            answer = _spoil(row["answer"], flaw, values[row["category"]], draw)
            found.append(({**row, "answer": answer}, flaw))
        else:
            found.append((row, ""))
    for flaw, text in RARE.items():
        for row in draw.choices(rows, k=TIMES):
            found.append(({**row, "answer": text.format(**row)}, flaw))
    found += [(row, LEAKED) for row in leaked]
    for row, _ in draw.choices(found, k=len(rows) // COPIES):
        question = row["question"]
        changed = draw.choice((question.lower(), question.replace(" ", "  ")))
        found.append(({**row, "question": changed}, COPY))
    draw.shuffle(found)
    return found


def _spoil(answer: str, flaw: str, values: list[str], draw: random.Random) -> str:
    """Return an answer with a frequent flaw; `values` are answers of other rows."""
    if flaw == WRONG:
        return draw.choice([value for value in values if value != answer])
    if flaw == CUT:
        return answer[: max(1, int(len(answer) * draw.uniform(0.3, 0.7)))]
    formats = (f"The answer is: {answer}.", json.dumps({"answer": answer}))
    return draw.choice((*formats, answer.upper()))
