"""Judges with known preferences, and the likelihoods that a model judges by."""

from __future__ import annotations

import math

import pytest
import torch

from colab_utils import data
from colab_utils.evaluation import judging
from colab_utils.evaluation.judging import judge

QUESTIONS = ["q1", "q2", "q3", "q4"]
LONG, SHORT = ["a long answer"] * 4, ["short"] * 4


def likes(better):
    """Return a judge that replies A if `better` prefers the answer shown first."""

    def ask(conversations):
        texts = [turns[-1]["content"] for turns in conversations]
        pairs = [text.split("Answer A: ")[1].split("\n\nAnswer B: ") for text in texts]
        return ["A" if better(*pair) else "B" for pair in pairs]

    return ask


def test_judge_of_length_names_the_longer_answer_in_both_orders():
    found = judge(likes(lambda a, b: len(a) > len(b)), QUESTIONS, LONG, SHORT)
    assert found.winners == found.straight == found.swapped == [1] * 4
    assert (found.agreeing, found.shown_first) == (1.0, 0.5)


def test_judge_that_always_names_the_first_decides_nothing():
    found = judge(likes(lambda a, b: True), QUESTIONS, LONG, SHORT)
    assert found.straight == [1] * 4 and found.swapped == [-1] * 4
    assert found.winners == [0] * 4
    assert (found.agreeing, found.shown_first) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", 1),
        ("b", -1),
        (" **B**", -1),
        ("Answer A.", 1),
        ("answer b: it is shorter", -1),
        ("(A)", 1),
        ("Both are fine", 0),
        ("Berlin", 0),
        ("An answer", 0),
        ("", 0),
        ("I prefer A", 0),
    ],
)
def test_verdict_is_the_letter_that_a_text_begins_with(text, verdict):
    found = judge(lambda some: [text] * len(some), ["q"], ["x"], ["y"])
    assert found.straight == [verdict] and found.swapped == [-verdict]


def test_conversation_as_text_names_who_speaks():
    turns = [{"role": "user", "content": "Hi"}]
    assert judging.as_text(turns) == "Hi"
    turns = [{"role": "system", "content": "Be kind."}, *turns]
    assert judging.as_text(turns) == "System: Be kind.\n\nUser: Hi"


def test_unreadable_verdicts_have_no_place():
    found = judge(lambda some: ["no idea"] * len(some), QUESTIONS, LONG, SHORT)
    assert found.agreeing == 0 and math.isnan(found.shown_first)


def test_pairs_without_partners_are_refused():
    with pytest.raises(ValueError, match="2 questions, and 1 and 2 answers"):
        judge(lambda some: ["A"] * len(some), ["q", "q"], ["x"], ["y", "z"])
    with pytest.raises(ValueError, match="0 questions"):
        judge(lambda some: [], [], [], [])


def test_likelihood_is_that_of_the_answer_tokens_of_the_conversation(model, tokenizer):
    prompts, answers = ["What is the capital of France?"] * 2, ["Paris", "A long one"]
    found = judging.likelihoods(model, tokenizer, prompts, answers)
    for prompt, answer, value in zip(prompts, answers, found, strict=True):
        turns = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        row = data.trained_tokens(turns, tokenizer)
        ids = torch.tensor([row["input_ids"]])
        places = [i for i, trained in enumerate(row["assistant_masks"]) if trained]
        while tokenizer.decode(ids[0, places[-1]]).strip() in ("", "</s>"):
            places.pop()  # the end of the turn
        with torch.inference_mode():
            lps = model(ids).logits[0].float().log_softmax(-1)
        expected = sum(lps[i - 1, ids[0, i]].item() for i in places)
        assert value == pytest.approx(expected, rel=1e-3)


def test_judge_by_likelihood_names_the_more_probable_letter(model, tokenizer):
    ask = judging.by_likelihood(model, tokenizer)
    turns = [[{"role": "user", "content": text}] for text in ("Say A.", "Say B, not A")]
    prompts = [turns[i][0]["content"] for i in range(2)]
    a, b = (
        judging.likelihoods(model, tokenizer, prompts, [letter] * 2) for letter in "AB"
    )
    assert ask(turns) == ["A" if x >= y else "B" for x, y in zip(a, b, strict=True)]
