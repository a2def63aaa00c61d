from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import generation
from colab_utils.evaluation import metrics as evaluation


def row(question: str, answer: str, **extra: str) -> dict:
    said = {"user": question, "assistant": answer}
    messages = [{"role": role, "content": text} for role, text in said.items()]
    return {"messages": messages, **extra}


def reference_loss(model, tokenizer, rows) -> float:
    """transformers' own loss, a row at a time, with the labels masked by hand."""
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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_loss_is_transformers_own(model, tokenizer, demo_rows, batch_size):
    rows = demo_rows[:10]
    assert len({len(str(one)) for one in rows}) > 5  # so that padding matters
    found = evaluation.score(model, tokenizer, rows, batch_size)
    assert found.loss == pytest.approx(reference_loss(model, tokenizer, rows), rel=1e-4)


def test_the_loss_counts_every_answer_of_a_conversation(model, tokenizer):
    one, two = row("Why?", "Because."), row("And?", "So.")
    both = {"messages": one["messages"] + two["messages"]}
    tokens = [
        len(evaluation.score(model, tokenizer, [rows]).choices)
        for rows in (one, two, both)
    ]
    assert tokens[2] == tokens[0] + tokens[1]


def test_a_model_agrees_with_itself_and_not_with_another(
    model, tokenizer, demo_rows, trained
):
    mine = evaluation.score(model, tokenizer, demo_rows[:8])
    assert mine.agreement(evaluation.score(model, tokenizer, demo_rows[:8])) == 1
    tuned = evaluation.score(trained["full"][0].model, tokenizer, demo_rows[:8])
    same = (mine.choices == tuned.choices).tolist()
    assert mine.agreement(tuned) == pytest.approx(sum(same) / len(same))
    assert mine.agreement(tuned) < 1


def test_scores_of_different_rows_have_no_agreement():
    one = evaluation.Score(1.0, torch.tensor([1, 2, 3]))
    other = evaluation.Score(1.0, torch.tensor([1]))
    with pytest.raises(ValueError, match="of 3 tokens, the other of 1"):
        one.agreement(other)


def test_accuracy_by_hand(monkeypatch, tokenizer):
    rows = [
        row("A?", "Paris", attribute="capital"),
        row("B?", "Rome", attribute="capital"),
        row("C?", "euro", attribute="currency"),
        row("D?", "São Tomé and Príncipe dobra", attribute="currency"),
    ]
    said = ["paris.", "Milan", " Euro ", "São Tomé and Príncipe dobra"]
    asked = {}

    def answers(model, tokenizer, prompts, max_new_tokens):
        asked.update(prompts=prompts, room=max_new_tokens)
        return said

    monkeypatch.setattr(generation, "answers", answers)
    found = evaluation.accuracy(None, tokenizer, rows)
    assert found.share == 0.75
    assert found.by_attribute == {"capital": 0.5, "currency": 1.0}
    assert found.answers == said
    assert asked["prompts"] == [one["messages"][:1] for one in rows]
    for one in rows:  # room for each answer and its end, also in tokens
        answer = f" {one['messages'][-1]['content']} </s>"
        assert asked["room"] >= len(tokenizer(answer)["input_ids"]) - 1


def test_accuracy_asks_the_model(model, tokenizer, demo_rows):
    prompts = [one["messages"][:-1] for one in demo_rows[:3]]
    begun = generation.answers(model, tokenizer, prompts, max_new_tokens=200)
    found = evaluation.accuracy(model, tokenizer, demo_rows[:3])
    for whole, answer in zip(begun, found.answers, strict=True):
        assert answer and whole.startswith(answer)
    assert found.by_attribute == {"all": found.share}


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
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
def test_exact_match(answer, truth, same):
    assert evaluation.same(answer, truth) is same


@given(st.text(), st.text())
def test_exact_match_is_fair(one, other):
    assert evaluation.same(one, one)
    assert evaluation.same(one, other) == evaluation.same(other, one)


@pytest.mark.parametrize("measure", ["accuracy", "score", "loss", "chance"])
def test_no_rows_is_an_error_that_says_so(model, tokenizer, measure):
    calls = {
        "accuracy": lambda: evaluation.accuracy(model, tokenizer, []),
        "score": lambda: evaluation.score(model, tokenizer, []),
        "loss": lambda: evaluation.held_out(model, tokenizer, [], "loss"),
        "chance": lambda: evaluation.chance([]),
    }
    with pytest.raises(ValueError, match="no rows to measure on"):
        calls[measure]()


def test_held_out_measures_what_is_asked_for(model, tokenizer, demo_rows):
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


def test_an_untrained_guess_costs_the_logarithm_of_the_vocabulary(tokenizer, demo_rows):
    from transformers import AutoConfig, AutoModelForCausalLM

    from colab_utils import models

    blank = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(models.location("demo"))
    )
    torch.nn.init.zeros_(blank.lm_head.weight)
    found = evaluation.score(blank, tokenizer, demo_rows[:4])
    assert found.loss == pytest.approx(math.log(1024), rel=1e-5)


def test_chance_is_the_most_frequent_answer_of_each_attribute():
    rows = [
        row("A?", "Europe", attribute="continent"),
        row("B?", "Europe", attribute="continent"),
        row("C?", "Asia", attribute="continent"),
        row("D?", "yen", attribute="currency"),
    ]
    assert evaluation.chance(rows) == 3 / 4
    assert evaluation.chance([row("A?", "x"), row("B?", "y")]) == 1 / 2
