"""Write, rewrite, improve and judge questions and answers with a generator.

A generator takes conversations and returns a text for each. Its texts are parsed
leniently. Every text that can't be used is rejected with the reason and its start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from colab_utils.creation import prompts
from colab_utils.creation.chunking import Chunk
from colab_utils.data import normalize
from colab_utils.data.schema import Message, Rejected, Row, reject

Messages = list[Message]
Generator = Callable[[list[Messages]], list[str]]

LONGEST = 50_000  # characters of a text that are searched for JSON
BRACKETS = 1000  # that may begin JSON there
OPENING = re.compile(r"[{\[]")
NO_JSON = "the generator's text holds no JSON with "
# A model that declines, in a short answer.
REFUSAL = re.compile(
    r"\bi(?:['’]?m| am) (?:so )?sorry\b|^sorry\b|\bas an ai\b"
    r"|\bi (?:cannot|can['’]t|can not|am unable to) "
    r"(?:answer|assist|comply|find|help|provide|rewrite|write)\b",
    re.IGNORECASE,
)
REFUSAL_WORDS = 80
# Words about the prompt itself: the question makes no sense without it.
COPIED = re.compile(
    r"\b(?:according to|based on|by|from|in) (?:the|this|that) (?:above |given )?"
    r"(?:article|context|document|excerpt|passage|text)\b"
    r"|\bthe passage\b|\b(?:given|rewritten) (?:prompt|question)\b",
    re.IGNORECASE,
)
SCORE = re.compile(r"[\s*\"'`]*(10|[1-9])(?:\.\d+)?(?:\s*/\s*10)?[\s*\"'`.]*")


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the chunk that both were written from.

    `score` is the judge's, and 0 before it judged.
    """

    question: str
    answer: str
    chunk: Chunk
    score: int = 0

    @property
    def grounded(self) -> bool:
        """Whether the answer stands in the chunk, except for case and punctuation."""
        words = f" {normalize(self.answer)} "
        return bool(words.strip()) and words in f" {normalize(self.chunk.text)} "


def call(generator: Generator, conversations: list[Messages]) -> list[str]:
    """Return the generator's texts; raises ValueError if it is not one for each."""
    texts = generator(conversations)
    if len(texts) != len(conversations):
        raise ValueError(
            f"The generator returned {len(texts)} texts for {len(conversations)} "
            "conversations. It must return a list with one text for each."
        )
    return texts


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield all JSON objects in a text, also from lists and around other text.

    An object that holds objects yields itself and them. Keys become lower case.
    """
    text, at = text.rpartition("</think>")[2][:LONGEST], 0
    decoder = json.JSONDecoder(strict=False)
    for _ in range(BRACKETS):
        found = OPENING.search(text, at)
        if not found:
            return
        try:
            value, at = decoder.raw_decode(text, found.start())
        except RecursionError:  # so would each bracket inside
            return
        except ValueError:
            at = found.end()
            continue
        yield from _inside(value)


def _inside(value: object) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield {key.lower(): part for key, part in one.items()}
            one = list(one.values())
        if isinstance(one, list):
            waiting += reversed(one)


def _texts(text: str, *keys: str) -> list[tuple[str, ...]]:
    """Return the values of the keys in each object that has them all, as texts."""
    found = []
    for one in objects(text):
        values = [one.get(key) for key in keys]
        if all(type(value) in (str, int, float) for value in values):
            texts = (str(v).encode("utf-8", "replace").decode() for v in values)
            parts = tuple(part.strip() for part in texts)
            found += [parts] if all(parts) else []
    return found


def _ask(
    template: str, fields: Iterable[dict[str, Any]], generator: Generator
) -> list[str]:
    """Return the generator's text for each set of fields of a prompt."""
    filled = [template.format(**one) for one in fields]
    asked: list[Messages] = [[{"role": "user", "content": text}] for text in filled]
    return call(generator, asked)


def _fields(pair: Pair, **more: str) -> dict[str, str]:
    passage = pair.chunk.text
    return {"question": pair.question, "answer": pair.answer, "passage": passage} | more


def _flaw(question: str, answer: str) -> str | None:
    """Return why a pair is of no use, or None."""
    if REFUSAL.search(answer) and len(answer.split()) < REFUSAL_WORDS:
        return "the generator refused"
    if copied := COPIED.search(question):
        return f"the question mentions {copied[0]!r}"
    if not (re.search(r"\w", question) and re.search(r"\w", answer)):
        return "the question or the answer has no words"
    return None


def write(
    chunks: list[Chunk], generator: Generator, count: int = 3
) -> tuple[list[Pair], list[Rejected]]:
    """Write about `count` questions and answers from each chunk.

    Rejected items have the chunk's number in `chunks` as their line.
    """
    fields = [{"passage": one.text, "count": count} for one in chunks]
    texts = _ask(prompts.QUESTIONS, fields, generator)
    pairs, rejected = [], []
    for number, (one, text) in enumerate(zip(chunks, texts, strict=True), start=1):
        found = _texts(text, "question", "answer")
        if not found:
            what = f"{NO_JSON}question and answer" if text else "no text came back"
            rejected.append(reject(number, what, text))
        for question, answer in found:
            if flaw := _flaw(question, answer):
                rejected.append(reject(number, flaw, question))
            else:
                pairs.append(Pair(question, answer, one))
    return pairs, rejected


def evolve(
    pairs: list[Pair], generator: Generator
) -> tuple[list[Pair], list[Rejected]]:
    """Rewrite each question so that it is harder, in the manner of Evol-Instruct.

    The kinds in `prompts.EVOLUTIONS` take turns. A rewriting is rejected if it changes
    nothing, refuses, or copies words of the prompt (Xu et al. 2023, section 3.2). The
    pairs themselves are not returned. A rejected item's line is its number in `pairs`.
    """
    kinds = list(prompts.EVOLUTIONS.values())
    fields = [_fields(p, how=kinds[i % len(kinds)]) for i, p in enumerate(pairs)]
    texts = _ask(prompts.EVOLVE, fields, generator)
    evolved, rejected = [], []
    for number, (pair, text) in enumerate(zip(pairs, texts, strict=True), start=1):
        found = _texts(text, "question", "answer")
        question, answer = found[0] if found else ("", "")
        flaw = _flaw(question, answer) if found else f"{NO_JSON}question and answer"
        if not flaw and normalize(question) == normalize(pair.question):
            flaw = "the question is unchanged"
        if flaw:
            rejected.append(reject(number, flaw, question or text))
        else:
            evolved.append(Pair(question, answer, pair.chunk))
    return evolved, rejected


def improve(
    pairs: list[Pair], generator: Generator
) -> tuple[list[Pair], list[Rejected]]:
    """Let the generator correct each answer; return the pairs with the new answers."""
    texts = _ask(prompts.IMPROVE, map(_fields, pairs), generator)
    improved, rejected = [], []
    for number, (pair, text) in enumerate(zip(pairs, texts, strict=True), start=1):
        found = _texts(text, "answer")
        answer = found[0][0] if found else ""
        flaw = _flaw(pair.question, answer) if found else f"{NO_JSON}an answer"
        if flaw:
            rejected.append(reject(number, flaw, text))
        else:
            improved.append(replace(pair, answer=answer, score=0))
    return improved, rejected


def judge(
    pairs: list[Pair], generator: Generator, at_least: int = 7
) -> tuple[list[Pair], list[Pair], list[Rejected]]:
    """Return the pairs with a score of `at_least`, those below, and the unscored ones.

    The generator gives each pair a score from 1 to 10 by the rubric in `prompts.JUDGE`.
    """
    texts = _ask(prompts.JUDGE, map(_fields, pairs), generator)
    good: list[Pair] = []
    low: list[Pair] = []
    rejected = []
    for number, (pair, text) in enumerate(zip(pairs, texts, strict=True), start=1):
        score = _score(text)
        if score is None:
            what = "the judge's text has no score from 1 to 10"
            rejected.append(reject(number, what, text))
        else:
            (good if score >= at_least else low).append(replace(pair, score=score))
    return good, low, rejected


def _score(text: str) -> int | None:
    """Return the score in JSON, or in a text such as "Score: 8/10" or "8"."""
    if in_json := _texts(text, "score"):
        given = in_json[0][0]
    else:
        named = re.search(r"\bscore\b\W{0,4}(\S+)", text, re.IGNORECASE)
        given = named[1] if named else text
    found = SCORE.fullmatch(given)
    return int(found[1]) if found else None


def reject_low(pairs: list[Pair]) -> list[Rejected]:
    """Return a rejected item for each pair, with the judge's score as the reason."""
    return [
        reject(number, f"the judge's score is {pair.score} of 10", pair.question)
        for number, pair in enumerate(pairs, start=1)
    ]


def to_rows(pairs: list[Pair], group: str = "document") -> list[Row]:
    """Return instruction rows, grouped by their "document" or by their "chunk".

    Rows of a group stay on one side of a split. Grouping by chunk is for a single
    document: its chunks overlap, so some text can be on both sides.
    """
    rows: list[Row] = []
    for number, pair in enumerate(pairs, start=1):
        turns: Messages = [
            {"role": "user", "content": pair.question},
            {"role": "assistant", "content": pair.answer},
        ]
        name = pair.chunk.document
        if group == "chunk":
            name = f"{name}, chunk {pair.chunk.number}"
        rows.append({"messages": turns, "line": number, "group": name})
    return rows
