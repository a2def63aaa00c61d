"""Rows with the columns of datasets that many people use, with words of our own."""

from __future__ import annotations

import pytest
from helpers.rows import ASSISTANT, DIALOG, USER

from colab_utils import data

ABC = {"text": ["oak", "elm"], "label": ["A", "B"]}
OPTIONS = "A. oak\nB. elm"
WORSE = {**ASSISTANT, "content": "You."}
IDS = {"id": "7", "source": "web", "url": "x", "model": "m"}
# Dataset: (raw row, kind, prompt, answer)
PUBLISHED = {
    "alpaca": (
        {"instruction": "Who?", "input": "", "output": "Me.", "text": "x Who? Me."},
        ("instruction", "Who?", "Me."),
    ),
    "orca": (
        {"system_prompt": "Brief.", "question": "Who?", "response": "Me."},
        ("instruction", "Brief.\nWho?", "Me."),
    ),
    "ultrachat": (
        {"prompt": "Who?", "prompt_id": "x", "messages": DIALOG},
        ("instruction", "Who?", "Me."),
    ),
    "ultrafeedback-binarized": (
        {"prompt": "Who?", "chosen": DIALOG, "rejected": [USER, WORSE]}
        | {"messages": DIALOG, "score_chosen": 8.0, "score_rejected": 2.0},
        ("preference", "Who?", "Me."),
    ),
    "numina": (
        {"problem": "3 + 4?", "solution": "It is 7.", "answer": "7"},
        ("instruction", "3 + 4?", "It is 7."),
    ),
    "openmath": (
        {"problem": "3 + 4?", "generated_solution": "It is 7.", "expected_answer": "7"},
        ("instruction", "3 + 4?", "It is 7."),
    ),
    "mmlu": (
        {"question": "Tree?", "subject": "x", "choices": ["oak", "elm"], "answer": 1},
        ("instruction", f"Tree?\n\n{OPTIONS}", "B"),
    ),
    "arc": (
        {"question": "Tree?", "choices": ABC, "answerKey": "A"},
        ("instruction", f"Tree?\n\n{OPTIONS}", "A"),
    ),
    "openbookqa": (
        {"question_stem": "Tree?", "choices": ABC, "answerKey": "B"},
        ("instruction", f"Tree?\n\n{OPTIONS}", "B"),
    ),
    "race": (
        {"article": "A mill.", "question": "Tree?", "options": ["oak", "elm"]}
        | {"answer": "B", "example_id": "x"},
        ("instruction", f"Tree?\n\nA mill.\n\n{OPTIONS}", "B"),
    ),
    "sciq": (
        {"question": "Tree?", "correct_answer": "oak", "distractor1": "elm"}
        | {"support": "The mill has oaks."},
        ("instruction", "Tree?\n\nThe mill has oaks.", "oak"),
    ),
    "trivia": (
        {"question": "Tree?", "answer": {"value": "oak", "aliases": ["oaks"]}},
        ("instruction", "Tree?", "oak"),
    ),
    "boolq": (
        {"question": "Is it?", "passage": "It is.", "answer": True},
        ("instruction", "Is it?\n\nIt is.", "true"),
    ),
    "natural instructions": (
        {"definition": "Answer me.", "inputs": "Who?", "targets": "Me."},
        ("instruction", "Who?\n\nAnswer me.", "Me."),
    ),
    "xsum": (
        {"document": "A mill burned.", "summary": "Fire."},
        ("instruction", "A mill burned.", "Fire."),
    ),
    "mbpp": (
        {"text": "Add.", "code": "a + b", "test_list": ["assert"]},
        ("instruction", "Add.", "a + b"),
    ),
    "lima": ({"conversations": ["Who?", "Me."]}, ("instruction", "Who?", "Me.")),
    "qnli": (
        {"question": "Who?", "sentence": "A man.", "label": "entailment", "idx": 0},
        ("classification", "Who?\nA man.", "entailment"),
    ),
    "qqp": (
        {"question1": "Who?", "question2": "Who is?", "is_duplicate": 1},
        ("classification", "Who?\nWho is?", "1"),
    ),
    "snli": (
        {"gold_label": "neutral", "sentence1": "A man.", "sentence2": "He is."},
        ("classification", "A man.\nHe is.", "neutral"),
    ),
    "dbpedia": (
        {"label": 3, "title": "Mill", "content": "It is old."},
        ("classification", "Mill\nIt is old.", "3"),
    ),
    "shp": (
        {"history": "Who?", "human_ref_A": "Me.", "human_ref_B": "You.", "labels": 1}
        | {"score_A": 5, "score_B": 2},
        ("preference", "Who?", "Me."),
    ),
    "skywork": (
        {"chosen": DIALOG, "rejected": [USER, WORSE]},
        ("preference", "Who?", "Me."),
    ),
    "stack exchange": (
        {"question": "Who?", "answers": [{"text": "You.", "pm_score": 1}]}
        | {
            "answers": [{"text": "You.", "pm_score": 1}, {"text": "Me.", "pm_score": 3}]
        },
        ("preference", "Who?", "Me."),
    ),
    "fineweb": (
        {"text": "A mill.", "dump": "x", "language": "en", "token_count": 3},
        ("completion", "", "A mill."),
    ),
    "the stack": (
        {"content": "a = 1\n", "path": "a.py", "ext": "py"},
        ("completion", "", "a = 1\n"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_of_published_datasets(name):
    raw, expected = PUBLISHED[name]
    for row in (raw, raw | IDS):
        made = data.to_row(row, 1)
        found = (data.kind_of(made), data.prompt_of(made), data.answer_of(made))
        assert found == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": [USER], "reward_model": {"ground_truth": "x"}}, "no column is its"),
        ({"text": "a", "role": "user", "labels": {"name": ["x"]}}, "one message of a"),
        ({"question": "a", "answer": "b", "context": {"title": []}}, "not text, but"),
        ({"translation": {"en": "a", "de": "b"}}, "no known format"),
        ({"prompt": "a", "response": "b", "is_safe": False}, "unpaired preference"),
    ],
)
def test_what_is_no_row_is_refused_by_name(raw, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row(raw, 1)
