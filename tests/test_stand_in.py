"""The rule that stands in for a language model in notebook 13."""

from __future__ import annotations

import json
import random

from colab_utils import creation, demo
from colab_utils.creation import prompts
from colab_utils.demo import sentences, stand_in


def ask(template: str, **fields: object) -> str:
    prompt = template.format(**fields)
    return stand_in.rule([[{"role": "user", "content": prompt}]])[0]


def test_facts_in_reads_every_form():
    for attribute, templates in sentences.SENTENCES.items():
        for template in templates:
            for fact in random.Random(template).sample(demo.facts(), 5):
                found = stand_in.facts_in(template.format(**fact))
                assert found == {(attribute, fact["country"]): fact[attribute]}


def test_pages_hold_all_facts(tmp_path):
    stand_in.write_pages(tmp_path)
    documents, rejected = creation.read(tmp_path)
    assert len(documents) == 6 and rejected == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".html"}
    found: dict = {}
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            found |= stand_in.facts_in(paragraph)
    assert len(found) >= 0.98 * 5 * len(demo.facts())
    assert not [key for key in found if found[key] != stand_in._truth()[key]]


def test_is_wrong():
    assert not stand_in.is_wrong("What is the capital of France?", "Paris")
    assert not stand_in.is_wrong(
        f"Name the language of Peru.{stand_in.SHORT}", "Spanish"
    )
    assert stand_in.is_wrong("What is the capital of France?", "Rome")
    assert stand_in.is_wrong("Who are you?", "Paris")


def test_rule_judges_and_corrects():
    fields = {"question": "What is the capital of France?", "passage": "It rains. "}
    fields["passage"] += "Paris is the capital of France."
    for answer, score in (("Paris", 9), ("Rome", 2)):
        reply = json.loads(ask(prompts.JUDGE, answer=answer, **fields))
        assert reply["score"] == score
        reply = json.loads(ask(prompts.IMPROVE, answer=answer, **fields))
        assert reply == {"answer": "Paris"}


def test_rule_knows_its_prompts_only():
    assert "knows the prompts" in ask("Tell me a joke.")
