"""Decide which one kind the rows of a dataset are of, and say why others are rejected.

An answer with a verdict (a label true or false) is of no kind: training on it could
teach a bad answer. Such answers become preference rows if a prompt has a good and a bad
one. The good ones become instruction rows if the reader asks for this kind, or if there
are no bad ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colab_utils import parameters
from colab_utils.data.schema import COLUMNS, INSTRUCTION, BadRow
from colab_utils.data.shapes import values
from colab_utils.data.shapes.column_names import MASKS, compact

# What an instruction row is if it has a label next to its answer.
GOOD, BAD = "a good answer", "a bad answer"  # true or false
ONE, ZERO = "an answer labeled 1", "an answer labeled 0"
OTHER = "an answer with a label"
VERDICTS = (GOOD, BAD, ONE, ZERO, OTHER)
SAID = {"true": GOOD, "false": BAD, "1": ONE, "1.0": ONE, "0": ZERO, "0.0": ZERO}
SAID |= dict.fromkeys(("good", "correct", "right", "desirable", "accepted"), GOOD)
SAID |= dict.fromkeys(("bad", "incorrect", "wrong", "undesirable", "rejected"), BAD)
SAID |= {"thumbs up": GOOD, "thumbs down": BAD}
# They are verdicts in a column such as is_correct. A column label may hold classes.
MORE = dict.fromkeys(("yes", "up", "like", "pass", "positive"), GOOD)
MORE |= dict.fromkeys(("no", "down", "dislike", "fail", "negative"), BAD)

UNPAIRED = "unpaired preference"
BAD_ANSWER = f"{UNPAIRED}: its label says that the answer is bad"
UNPAIRED_ROW = f"{UNPAIRED}: its label says whether the answer is good"


def choose(kind: object) -> str:
    """Return a kind that the reader gave, or "auto"; raises ValueError for others."""
    return parameters.choice("KIND", kind, "auto", *COLUMNS)


def verdict(label: object, column: object, *, opposite: bool = False) -> str:
    """Return what a cell says about the answer of its row.

    With `opposite`, the column says whether the answer is bad.
    """
    said = str(label).strip().lower() if isinstance(label, (str, int, float)) else ""
    words = SAID if compact(column) == "label" else SAID | MORE
    found = words.get(said.replace("_", " "), OTHER)
    return {GOOD: BAD, BAD: GOOD}.get(found, found) if opposite else found


def is_trained(flag: object, column: object) -> bool:
    """Return whether a row's own weight or mask says that it is trained.

    Raises BadRow if it says that the row is not trained.
    """
    said = values.flag(flag)
    if said == (compact(column) in MASKS):
        raise BadRow(f"not trained: its {values.name(column)} is {flag!s:.10}")
    return said is not None


@dataclass(frozen=True)
class Decision:
    """The one kind of a dataset, and what its labels next to answers mean.

    `zero_is_bad` says that labels 0 and 1 are verdicts. `take_good` says that good
    answers are kept: the reader asked for instructions, or no answer is bad.
    """

    kind: str
    zero_is_bad: bool
    take_good: bool

    def meaning(self, found: str) -> str:
        """Return the kind of a row, or GOOD or BAD if it has a verdict."""
        if self.zero_is_bad:
            found = {ONE: GOOD, ZERO: BAD}.get(found, found)
        return INSTRUCTION if found in (ONE, ZERO, OTHER) else found

    def reason(self, found: str) -> str | None:
        """Return why a row is rejected, or None for a row of the dataset's kind."""
        meaning = self.meaning(found)
        if meaning == self.kind or (meaning == GOOD and self.take_good):
            return None
        if meaning in (GOOD, BAD):
            return BAD_ANSWER if self.take_good else UNPAIRED_ROW
        return f"a row of the kind {meaning} in a dataset of the kind {self.kind}"


def decide(found: Mapping[str, int], kind: str) -> Decision:
    """Return the kind that the reader gave, else the kind of most rows.

    `found` counts what `RowReader.read_all` found. Labels next to answers are verdicts
    if they are true or false, or if all of them are 0 or 1. If no answer is bad, good
    ones are instruction rows.
    """
    zero_is_bad = bool(found.get(ZERO)) and not found.get(OTHER)
    all_good = not found.get(BAD) and not zero_is_bad
    votes: dict[str, int] = {}
    for what, count in found.items():
        name = Decision("", zero_is_bad, False).meaning(what)
        if name in (GOOD, BAD):
            name = INSTRUCTION if all_good else UNPAIRED
        votes[name] = votes.get(name, 0) + count
    most = max(votes, key=lambda name: votes[name], default="")
    chosen = most if kind == "auto" else kind
    take_good = kind == INSTRUCTION or (chosen == INSTRUCTION and all_good)
    return Decision(chosen, zero_is_bad, take_good)
