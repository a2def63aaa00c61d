"""Accuracy, loss, agreement and chance, compared with references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import evaluation, generation


def row(question: str, answer: str, **extra: str) -> dict:
    turns = {"user": question, "assistant": answer}
    messages = [{"role": role, "content": text} for role, text in turns.items()]
    return {"messages": messages, **extra}


def reference_loss(model, tokenizer, rows) -> float:
    """Return transformers' own loss, row by row, with the labels masked by hand."""
    total = tokens = 0
    for one in rows:
        prompt = tokenizer.apply_chat_template(
            one["messages"][:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        text = tokenizer.apply_chat_template(one["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.inference_mode():
            loss = model(
                input_ids=torch.tensor([ids]), labels=torch.tensor([labels])
            ).loss
        count = len(ids) - len(prompt)
        total, tokens = total + loss.item() * count, tokens + count
    return total / tokens


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_score_loss_is_transformers_own(model, tokenizer, demo_rows, batch_size):
    rows = demo_rows[:10]
    assert len({len(str(one)) for one in rows}) > 5  # so that padding matters
    found = evaluation.score(model, tokenizer, rows, batch_size)
    assert found.loss == pytest.approx(reference_loss(model, tokenizer, rows), rel=1e-4)


def test_score_counts_every_answer_of_a_conversation(model, tokenizer):
    one, two = row("Why?", "Because."), row("And?", "So.")
    both = {"messages": one["messages"] + two["messages"]}
    tokens = [
        len(evaluation.score(model, tokenizer, [rows]).top_1)
        for rows in (one, two, both)
    ]
    assert tokens[2] == tokens[0] + tokens[1]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_score_by_category_is_the_loss_of_its_rows(
    model, tokenizer, demo_rows, batch_size
):
    """Long answers have no accuracy: their results by category are losses."""
    rows = [row | {"category": "ab"[n % 2]} for n, row in enumerate(demo_rows[:5])]
    found = evaluation.score(model, tokenizer, rows, batch_size).by_category
    assert list(found) == ["a", "b"]
    for name, start in (("a", 0), ("b", 1)):
        alone = evaluation.score(model, tokenizer, rows[start::2])
        assert found[name] == pytest.approx(alone.loss, rel=1e-4)
        assert alone.by_category == pytest.approx({name: alone.loss}, rel=1e-6)
    held_out = evaluation.held_out(model, tokenizer, rows, "loss")
    assert held_out.by_category == pytest.approx(found, rel=1e-4)


@pytest.mark.slow
def test_agreement_with_itself_and_another_model(model, tokenizer, demo_rows, trained):
    mine = evaluation.score(model, tokenizer, demo_rows[:8])
    assert mine.agreement(evaluation.score(model, tokenizer, demo_rows[:8])) == 1
    finetuned = evaluation.score(trained["full"][0].model, tokenizer, demo_rows[:8])
    equal = (mine.top_1 == finetuned.top_1).tolist()
    assert mine.agreement(finetuned) == pytest.approx(sum(equal) / len(equal))
    assert mine.agreement(finetuned) < 1


def test_difference_with_itself_and_other_models(model, tokenizer, demo_rows):
    rows = demo_rows[:8]
    mine = evaluation.score(model, tokenizer, rows)
    assert mine.logits.shape == (len(mine.top_1), 128)
    again = evaluation.score(model, tokenizer, rows)
    assert mine.difference(again) == 0
    shifted = replace(mine, logits=mine.logits + torch.randn(len(mine.top_1), 1))
    assert mine.difference(shifted) < 1e-5  # the probabilities are the same
    centered = mine.logits - mine.logits.mean(-1, keepdim=True)
    assert mine.difference(replace(mine, logits=1.1 * centered)) == pytest.approx(0.1)
    noise = torch.randn(mine.logits.shape) * centered.std()
    assert mine.difference(replace(mine, logits=noise)) == pytest.approx(1.4, abs=0.1)


def test_held_out_with_a_known_score(model, tokenizer, demo_rows, monkeypatch):
    rows = demo_rows[:8]
    expected = evaluation.held_out(model, tokenizer, rows, "loss")
    scored = evaluation.score(model, tokenizer, rows)
    monkeypatch.setattr("colab_utils.evaluation.metrics.score", None)  # not again
    found = evaluation.held_out(model, tokenizer, rows, "loss", scored)
    assert found == expected


def test_agreement_refuses_different_rows():
    one = evaluation.Score(1.0, torch.tensor([1, 2, 3]), torch.zeros(3, 4))
    other = evaluation.Score(1.0, torch.tensor([1]), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="has 3 tokens, the other 1"):
        one.agreement(other)


def test_accuracy_by_hand(monkeypatch, tokenizer):
    rows = [
        row("A?", "Paris", category="capital"),
        row("B?", "Rome", category="capital"),
        row("C?", "euro", category="currency"),
        row("D?", "São Tomé and Príncipe dobra", category="currency"),
    ]
    given = ["paris.", "Milan", " Euro ", "São Tomé and Príncipe dobra"]
    asked = {}

    def answers(model, tokenizer, prompts, max_new_tokens):
        asked.update(prompts=prompts, limit=max_new_tokens)
        return given

    monkeypatch.setattr(generation, "answers", answers)
    found = evaluation.accuracy(None, tokenizer, rows)
    assert found.share == 0.75
    assert found.by_category == {"capital": 0.5, "currency": 1.0}
    assert found.answers == given
    assert asked["prompts"] == [one["messages"][:1] for one in rows]
    for one in rows:  # enough tokens for each answer and the EOS token
        answer = f" {one['messages'][-1]['content']} </s>"
        assert asked["limit"] >= len(tokenizer(answer)["input_ids"]) - 1


def test_accuracy_by_category_with_blanks(monkeypatch, tokenizer):
    rows = [
        row("A?", "x", category="easy"),
        row("B?", "y", category=""),
        row("C?", "z"),
    ]
    monkeypatch.setattr(generation, "answers", lambda *_, **__: ["x", "y", "no"])
    found = evaluation.accuracy(None, tokenizer, rows)
    assert found.by_category == {"(none)": 0.5, "easy": 1.0}


@pytest.mark.slow
def test_accuracy_generates_with_the_model(model, tokenizer, demo_rows):
    prompts = [one["messages"][:-1] for one in demo_rows[:3]]
    whole_answers = generation.answers(model, tokenizer, prompts, max_new_tokens=200)
    found = evaluation.accuracy(model, tokenizer, demo_rows[:3])
    for whole, answer in zip(whole_answers, found.answers, strict=True):
        assert answer and whole.startswith(answer)
    assert found.by_category == {"all": found.share}


@pytest.mark.parametrize(
    ("answer", "truth", "matches"),
    [
        ("Paris", "Paris", True),
        (" paris. ", "Paris", True),
        ("PARIS", "Paris.", True),
        ("Paris, France", "Paris", False),
        ("", "Paris", False),
        ("+33", "+33", True),
        ("Strasse", "Straße", True),
    ],
)
def test_exact_match(answer, truth, matches):
    assert evaluation.exact_match(answer, truth) is matches


@given(st.text(), st.text())
def test_exact_match_is_reflexive_and_symmetric(one, other):
    assert evaluation.exact_match(one, one)
    assert evaluation.exact_match(one, other) == evaluation.exact_match(other, one)


@pytest.mark.parametrize("measure", ["accuracy", "score", "loss", "chance"])
def test_measures_refuse_empty_rows(model, tokenizer, measure):
    calls = {
        "accuracy": lambda: evaluation.accuracy(model, tokenizer, []),
        "score": lambda: evaluation.score(model, tokenizer, []),
        "loss": lambda: evaluation.held_out(model, tokenizer, [], "loss"),
        "chance": lambda: evaluation.chance([]),
    }
    with pytest.raises(ValueError, match="no rows to measure on"):
        calls[measure]()


def test_held_out_by_metric(model, tokenizer, demo_rows):
    rows = demo_rows[:4]
    loss = evaluation.held_out(model, tokenizer, rows, "loss")
    assert loss.value == evaluation.score(model, tokenizer, rows).loss
    assert str(loss) == f"held-out loss {loss.value:.3f} nats a token"
    share = evaluation.held_out(model, tokenizer, rows, "accuracy")
    found = evaluation.accuracy(model, tokenizer, rows)
    assert (share.value, share.answers) == (found.share, found.answers)
    assert len(share.answers) == 4 and loss.answers == []
    assert str(share) == f"held-out accuracy {share.value:.1%}"
    with pytest.raises(ValueError, match="metric is 'bleu'"):
        evaluation.held_out(model, tokenizer, rows, "bleu")


def test_score_of_a_uniform_guess_is_log_vocabulary(tokenizer, demo_rows):
    from transformers import AutoConfig, AutoModelForCausalLM

    from colab_utils import models

    blank = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(models.location("demo"))
    )
    torch.nn.init.zeros_(blank.lm_head.weight)
    found = evaluation.score(blank, tokenizer, demo_rows[:4])
    assert found.loss == pytest.approx(math.log(1024), rel=1e-5)


def test_chance_is_the_most_frequent_answer_of_each_category():
    rows = [
        row("A?", "Europe", category="continent"),
        row("B?", "Europe", category="continent"),
        row("C?", "Asia", category="continent"),
        row("D?", "yen", category="currency"),
    ]
    assert evaluation.chance(rows) == 3 / 4
    assert evaluation.chance([row("A?", "x"), row("B?", "y")]) == 1 / 2


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("", "", 1.0),
        ("abc", "abc", 1.0),
        ("", "abc", 0.0),
        ("kitten", "sitting", 1 - 3 / 7),
        ("flaw", "lawn", 0.5),
    ],
)
def test_edit_similarity(text, truth, expected):
    assert evaluation.edit_similarity(text, truth) == pytest.approx(expected)
    assert evaluation.edit_similarity(truth, text) == pytest.approx(expected)
