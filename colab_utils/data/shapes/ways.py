"""The ways in which columns can be read: as what kind, and what each column holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from colab_utils.data.schema import (
    CLASSIFICATION,
    COMPLETION,
    INSTRUCTION,
    MIDDLE,
    PREFERENCE,
)
from colab_utils.data.shapes import values
from colab_utils.data.shapes.column_names import (
    ANSWERS,
    BETTER,
    CHOSEN,
    CLASSES,
    CONVERSATIONS,
    ENDS,
    INFILLS,
    INPUTS,
    KEYS,
    LABELED,
    LETTERS,
    LIST_SCORES,
    META,
    MIDDLES,
    OPTIONS,
    PAIRS,
    PREFIXES,
    PROMPTS,
    RANKS,
    REJECTED,
    SCORES,
    SEVERAL,
    STEMS,
    SUFFIXES,
    TEXTS,
    TWO_TEXTS,
)

# Keys of the score of an answer that is an object. A rank is best if it is low.
SCORE_KEYS = (
    *("overall_score", "score", "rating", "reward", "overall_rating"),
    *("pm_score", "votes", "upvotes"),
)
RANK_KEYS = ("rank", "ranking")
SCORED = frozenset(SCORE_KEYS + RANK_KEYS)

Found = dict[str, str]  # what a column holds -> its compact name


class Objects:
    """Stands for the type of a cell that is a list of objects."""


class Scored:
    """Stands for the type of a list of objects that have a score or a rank."""


class Several:
    """Stands for the type of a list of two values or more that are no objects."""


class Flags:
    """Stands for the type of a list of two or more of true and false."""


# The types of cells that may hold a list: an empty cell may, too.
LABELS = (str, int, float, bool, list, Several, Flags, None)  # types of a class
LISTS = (list, dict, Objects, Scored, Several, Flags, None)


def type_of(value: object) -> type | None:
    """Return the type of a cell, one of the classes above, or None for a blank cell."""
    kind = value.__class__
    if kind is str:
        return None if not value or value.isspace() else kind  # type: ignore[attr-defined]
    if values.is_blank(value):
        return None
    if isinstance(value, dict):  # the Hub's column of objects is an object of lists
        table = all(isinstance(cells, list) for cells in value.values())
        return Scored if table and _has_score(value) else dict
    if isinstance(value, list):
        if isinstance(value[0], dict):
            return Scored if _has_score(value[0]) else Objects
        if len(value) == 1:
            return list
        return Flags if isinstance(value[0], bool) else Several
    return kind


def _has_score(value: Mapping[str, object]) -> bool:
    return not SCORED.isdisjoint(value)


@dataclass(frozen=True)
class Names:
    """The compact names of the columns that are looked at, and all types of cells."""

    names: Sequence[str]
    types: Mapping[str, type | None]

    def first(self, options: Sequence[str]) -> str:
        """Return the first of the names that a column has, or ""."""
        return next((name for name in options if name in self.names), "")

    def first_of(self, options: Sequence[str], kinds: Sequence[type | None]) -> str:
        """Return the first name of a column with cells of one of these types."""
        return self.first([name for name in options if self.types.get(name) in kinds])

    def any(self, options: Sequence[str]) -> str:
        """Return the first name of a column that may be empty, as a prefix may be."""
        return next((name for name in options if name in self.types), "")

    def prompt(self) -> str:
        """Return the name of the column that holds the prompt, or ""."""
        history = "history" if self.types.get("history") is str else ""
        if found := self.first(PROMPTS) or history or self.first(INPUTS):
            return found
        # Else a source is where the row is from.
        return self.first(("source",)) if self.first(("target",)) else ""

    def options(self) -> Found:
        """Return the columns of the options of a question: one, or one for each."""
        if name := self.first(OPTIONS):
            return {"option": name}
        for letters in LETTERS:
            found = [*itertools.takewhile(self.names.__contains__, letters)]
            if len(found) > 1:
                return {f"option {name}": name for name in found}
        return {}


def ways(has: Names) -> Iterator[tuple[str, Found]]:
    """Yield (kind, what its columns hold) for each way to read the columns."""
    yield from ((PREFERENCE, found) for found in _two_answers(has))
    if parts := _middle(has):
        yield MIDDLE, parts
    if turns := has.first_of(CONVERSATIONS, LISTS) or has.first(CONVERSATIONS[:2]):
        yield INSTRUCTION, {"messages": turns}
    text, label = has.first(LABELED), has.first_of(CLASSES, LABELS)
    if label in META and any(name in ANSWERS for name in has.types):
        label = ""
    asked = has.prompt()
    numbers = (int, bool) if asked else (int, bool, str)
    if text and (target := has.first_of(("target",), numbers)):
        yield CLASSIFICATION, {"text": text, "label": target}
    if asked and (options := has.options()) and (answer := has.first(KEYS)):
        yield INSTRUCTION, {"prompt": asked, "answer": answer, **options}
    for prompt, answers in PAIRS:
        if prompt in has.names and (answer := has.first(answers)):
            yield INSTRUCTION, {"prompt": prompt, "answer": answer}
    if asked and (answer := has.first(ANSWERS)):
        yield INSTRUCTION, {"prompt": asked, "answer": answer}
    for one, two in TWO_TEXTS:
        if label and {one, two} <= set(has.names) and label not in (one, two):
            yield CLASSIFICATION, {"text": one, "second": two, "label": label}
    if text and label:
        yield CLASSIFICATION, {"text": text, "label": label}
    if text := has.first([name for name in TEXTS if has.types.get(name) is not dict]):
        yield COMPLETION, {"text": text}


def _middle(has: Names) -> Found:
    """Return the columns of a middle, and of the texts before and after it."""
    middle, before, after = has.first(MIDDLES), has.any(PREFIXES), has.any(SUFFIXES)
    if after == "suffix" and not middle:
        middle = has.first(INFILLS)
        before = has.any(("prefix",))
        if not before and "suffix" in has.names:
            before = has.first(("prompt",))
    if middle == "canonicalsolution":
        before = before or has.first(("prompt",))
    if before and middle and after:
        return {"prefix": before, "middle": middle, "suffix": after}
    return {}


def _two_answers(has: Names) -> Iterator[Found]:
    """Yield what columns with a better and a worse answer hold."""
    asked = has.prompt() or has.first_of(CONVERSATIONS, LISTS)
    prompt = {"prompt": asked} if asked else {}
    bad = has.first([n for n in REJECTED if has.types.get(n) is not bool])
    if bad and (good := has.first(CHOSEN)):
        yield {**prompt, "chosen": good, "rejected": bad, **_scores(has, good, bad)}
    elif bad and (turns := has.first_of(CONVERSATIONS, LISTS)):
        yield {"chosen": turns, "rejected": bad}
    elif bad and prompt and (good := has.first(ANSWERS)):
        yield {**prompt, "chosen": good, "rejected": bad}
    for stem, (a, b) in itertools.product(STEMS, ENDS):
        first, second = stem + a, stem + b
        if first in has.names and second in has.names:
            pair = {**prompt, "first": first, "second": second}
            if better := has.first(BETTER):
                yield {**pair, "better": better}
            if scores := _scores(has, a, b, ("first", "second")):
                yield {**pair, **scores}
    if prompt and (several := has.first_of(SEVERAL, LISTS)):
        if scored := has.first_of(LIST_SCORES, LISTS):
            yield {**prompt, "answers": several, "scores": scored}
        elif ranked := has.first_of(RANKS, LISTS):
            yield {**prompt, "answers": several, "ranks": ranked}
        elif has.types[several] is Scored:
            yield {**prompt, "answers": several}
    # LLaMA-Factory's pairs, of which the first answer is the better one.
    if asked == "instruction" and has.first_of(("output",), (Several,)):
        yield {**prompt, "best first": "output"}


def _scores(
    has: Names, good: str, bad: str, parts: Sequence[str] = ("chosen", "rejected")
) -> Found:
    """Return the columns of the scores of two answers: score_chosen, chosen_score."""
    for name in SCORES:
        for pair in ((name + good, name + bad), (good + name, bad + name)):
            if all(one in has.names for one in pair):
                return {
                    f"{part} score": one for part, one in zip(parts, pair, strict=True)
                }
    return {}
