"""Pages about the demo world, and a rule that writes questions from their sentences.

The rule stands in for a language model in 13_create_from_documents. It knows the forms
of `sentences.SENTENCES`, and it can do nothing else. It makes mistakes on purpose, as
language models do.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

from colab_utils import demo
from colab_utils.demo.sentences import SENTENCES, paragraph

Fact = tuple[str, str]  # the attribute and the country
SHORT = " Answer as briefly as you can."


def write_pages(folder: Path) -> None:
    """Write a page for each continent, half of them Markdown and half HTML.

    A page has a paragraph for each country, with a sentence for each attribute.
    """
    draw = random.Random(0)
    for i, continent in enumerate(sorted({f["continent"] for f in demo.facts()})):
        here = [fact for fact in demo.facts() if fact["continent"] == continent]
        texts = [" ".join(paragraph(fact, draw)) for fact in here]
        page, end = "\n\n".join(texts), ".md"
        if i % 2:
            page = "\n".join(f"<p>{text}</p>" for text in texts)
            page, end = f"<html><body>\n{page}\n</body></html>\n", ".html"
        name = continent.lower().replace(" ", "-")
        (folder / f"{name}{end}").write_text(page, encoding="utf-8")


@cache
def _forms() -> list[tuple[str, re.Pattern[str]]]:
    """Return a pattern for each form of a sentence, with its attribute."""
    forms = []
    for attribute, templates in SENTENCES.items():
        for template in templates:
            parts = re.split(r"\{(\w+)\}", template)  # text, name, text, name, text
            pattern = "".join(
                f"(?P<{part}>.+)" if i % 2 else re.escape(part)
                for i, part in enumerate(parts)
            )
            forms.append((attribute, re.compile(pattern)))
    return forms


@cache
def _meanings() -> dict[str, Fact]:
    """Return what each question of the demo asks for."""
    return {
        wording.format(country=fact["country"]): (attribute, fact["country"])
        for fact in demo.facts()
        for attribute, wordings in demo.QUESTIONS.items()
        for wording in wordings
    }


def facts_in(passage: str) -> dict[Fact, str]:
    """Return the facts in the sentences that the rule knows.

    >>> facts_in("The capital of France is Paris. It rains.")
    {('capital', 'France'): 'Paris'}
    """
    found = {}
    for sentence in re.split(r"(?<=\.)\s+", passage):
        for attribute, form in _forms():
            if match := form.fullmatch(sentence):
                found[attribute, match["country"]] = match[attribute]
    return found


@cache
def _truth() -> dict[Fact, str]:
    facts = demo.facts()
    return {(a, fact["country"]): fact[a] for fact in facts for a in demo.ATTRIBUTES}


def is_wrong(question: str, answer: str) -> bool:
    """Return whether the answer to a question of the rule is not the true one."""
    meaning = _meanings().get(question.removesuffix(SHORT))
    return meaning is None or _truth()[meaning] != answer


def rule(conversations: list[list[dict[str, str]]]) -> list[str]:
    """Return what the rule writes for the prompts of `creation.prompts`.

    It refuses one passage in twenty, and is cut off in one of ten. One answer in eight
    is wrong: another value of the passage, or any value of the world. It judges and
    corrects without mistakes, because it looks the answer up.
    """
    return [_reply(turns[-1]["content"]) for turns in conversations]


def _reply(prompt: str) -> str:
    task, _, passage = prompt.rpartition("Passage:\n")
    facts, draw = facts_in(passage), random.Random(prompt)
    if count := re.match(r"Write (\d+)", task):
        return _write(facts, int(count[1]), draw)
    asked = re.search("Question: (.*)\nAnswer: (.*)", task)
    if asked is None:
        return "The rule knows the prompts of colab_utils.creation only."
    question, answer = asked.groups()
    meaning = _meanings().get(question.removesuffix(SHORT))
    right = facts.get(meaning, answer) if meaning else answer
    if task.startswith("Rewrite"):
        return _rewrite(question, right, draw)
    if task.startswith("Correct"):
        return json.dumps({"answer": right})
    return json.dumps({"reason": right, "score": 9 if answer == right else 2})


def _write(facts: dict[Fact, str], count: int, draw: random.Random) -> str:
    """Return questions and answers as JSON in a code fence, with mistakes."""
    world = sorted(set(_truth().values()))
    pairs = []
    for attribute, country in draw.sample(sorted(facts), min(count, len(facts))):
        question = draw.choice(demo.QUESTIONS[attribute]).format(country=country)
        answer = facts[attribute, country]
        if draw.random() < 1 / 8:
            answer = draw.choice(draw.choice([sorted(facts.values()), world]))
        pairs.append({"question": question, "answer": answer})
    text = f"Here you are:\n```json\n{json.dumps(pairs, indent=1)}\n```"
    mistake = draw.random()
    if mistake < 0.05:
        return "I'm sorry, I can't help with that."
    return text[: len(text) * 2 // 3] if mistake < 0.15 else text


def _rewrite(question: str, answer: str, draw: random.Random) -> str:
    """Return the question with a requirement, or one of three failures."""
    kind = draw.choice(["good", "good", "unchanged", "copied", "refused"])
    if kind == "refused":
        return "I'm sorry, I can't help with that."
    new = {"good": question + SHORT, "copied": f"Rewritten question: {question}"}
    return json.dumps({"question": new.get(kind, question), "answer": answer})
