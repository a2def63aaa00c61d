"""Two answers to one question become a preference row, or a bad row."""

from __future__ import annotations

import json

import pytest
from helpers.rows import ASSISTANT, DIALOG, SYSTEM, USER

from colab_utils import data
from colab_utils.data.shapes import formats, preferences

WORSE = {**ASSISTANT, "content": "You."}
DIALOGUE = "\n\nHuman: Who?\n\nAssistant: {}"
TURNS = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "chosen": "Me.", "rejected": "You."},
        {"Question": "Who?", "Chosen": "Me.", "Rejected": "You."},
        {"instruction": "Who?", "chosen_response": "Me.", "rejected_response": "You."},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]},
        {"messages": DIALOG, "rejected_response": "You."},
        {"messages": DIALOG, "rejected_messages": [USER, WORSE]},
        {"instruction": "Who?", "output": "Me.", "rejected": "You."},
        {"instruction": "Who?", "input": "", "output": ["Me.", "You."]},
        {"instruction": "Who?", "output": ["Me.", "You."], "ranking": True},
        {"chosen": DIALOG, "rejected": [USER, WORSE], "source": "a dataset"},
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [ASSISTANT],
            "non_preferred_output": [WORSE],
        },
        {"chosen": DIALOG, "rejected": [USER, WORSE]},
        {"prompt": "Who?", "chosen": DIALOG, "rejected": [USER, WORSE]},
        {"prompt": "Who?", "chosen": json.dumps(DIALOG), "rejected": [USER, WORSE]},
        {"chosen": DIALOGUE.format("Me."), "rejected": DIALOGUE.format("You.")},
        {"prompt": DIALOGUE.format(""), "chosen": "Me.", "rejected": "You."},
        {"prompt": DIALOGUE.format(""), "response": "x"}
        | {"chosen": DIALOGUE.format("Me."), "rejected": DIALOGUE.format("You.")},
        {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": WORSE},
        {"prompt": "Who?", "chosen": "Me.", "rejected": "You.", "messages": DIALOG}
        | {"score_chosen": 8.0, "score_rejected": 8.0},
        {"question": "Who?", "chosen": "Me.", "rejected": "You.", "history": []}
        | {"chosen_score": "8", "rejected_score": 1},
        {"history": "Who?", "human_ref_A": "Me.", "human_ref_B": "You.", "labels": 1},
        {"history": "Who?", "human_ref_A": "You.", "human_ref_B": "Me.", "labels": 0},
        {"prompt": "Who?", "response_0": "You.", "response_1": "Me."}
        | {"better_response_id": 1, "safer_response_id": 0},
        {"prompt": "Who?", "answer_1": "Me.", "answer_2": "You.", "preference": 1},
        {"prompt": "Who?", "response_a": "Me.", "response_b": "You.", "winner": "A"},
        {"prompt": "Who?", "conversation_a": DIALOG, "conversation_b": [USER, WORSE]}
        | {"winner": "model_a"},
        {"question": "Who?", "answer_0": "You.", "answer_1": "Me."}
        | {"score_0": -0.5, "score_1": 0.5},
        {"prompt": "Who?", "responses": ["You.", "Me."], "scores": [1, "2.5"]},
        {"prompt": "Who?", "responses": ["You.", "Me."], "ranking": [2, 1]},
        {
            "prompt": "Who?",
            "answers": [{"answer": "Me.", "rank": 1}, {"answer": "You.", "rank": 2}],
        },
        {
            "instruction": "Who?",
            "completions": [
                {"response": "You.", "overall_score": 3.5, "model": "x"},
                {"response": "Me.", "overall_score": 9, "model": "y"},
            ],
        },
        {
            "instruction": "Who?",
            "completions": {"response": ["You.", "Me."], "overall_score": [3.5, 9]},
        },
    ],
)
def test_shapes_of_preferences(row):
    made, found = formats.RowReader().read(row, 1)
    assert found == "preference"
    assert made == {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]} | {
        "line": 1
    }


def test_shared_turns_and_system_belong_to_the_prompt():
    turns = [SYSTEM, *DIALOG, {**USER, "content": "Why?"}]
    row = {"chosen": [*turns, ASSISTANT], "rejected": [*turns, WORSE]}
    assert data.to_row(row, 1)["prompt"] == turns
    row = {"system": "Be brief.", "prompt": "Who?", "chosen": "Me.", "rejected": "You."}
    assert data.to_row(row, 1)["prompt"] == [SYSTEM, USER]


def test_of_several_answers_the_best_and_the_worst_are_used():
    reader = formats.RowReader()
    raw = {"prompt": "Who?", "responses": ["x", "Me.", "You."], "scores": [2, 3, 1]}
    row, _ = reader.read(raw, 1)
    assert (row["chosen"], row["rejected"]) == ([ASSISTANT], [WORSE])
    assert list(reader.tally().repairs) == [
        "only the best and the worst of several answers used"
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Who?", "chosen": "Me.", "rejected": " Me."}, preferences.SAME),
        ({"messages": DIALOG, "rejected_response": "Me."}, preferences.SAME),
        ({"chosen": "Me.", "rejected": "You."}, "a preference without a prompt"),
        (
            {"prompt": "Who?", "chosen": "a", "rejected": "b"}
            | {"score_chosen": 1, "score_rejected": 2},
            "the score of rejected is higher",
        ),
        (
            {"chosen": DIALOGUE.format(""), "rejected": DIALOGUE.format("You.")},
            "chosen does not end in an answer",
        ),
        (
            {
                "chosen": [*DIALOG, USER],
                "rejected": [*DIALOG, {**USER, "content": "x"}],
            },
            "chosen does not end in an answer",
        ),
        (
            {"chosen": [USER, WORSE, *DIALOG], "rejected": [USER, ASSISTANT]},
            "differ before their last answers",
        ),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "winner": "tie"},
            "a tie: no answer is better",
        ),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "winner": "llama"},
            "the verdict llama names no answer",
        ),
        (
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]},
            "a tie: no answer is better",
        ),
        (
            {"prompt": "a", "responses": ["b", "c"], "scores": [1]},
            "there are 2 answers, but not one score for each",
        ),
        (
            {"prompt": "a", "completions": [{"score": 1}, {"response": "c"}]},
            "its answers have no scores",
        ),
        (
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, "good"]},
            "the score good is not a number",
        ),
    ],
)
def test_reasons(row, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row(row, 1)


def test_a_list_of_one_answer_is_no_preference():
    assert data.to_messages({"instruction": "Who?", "output": ["Me."]}) == DIALOG


def test_the_kind_line_says_that_the_first_answer_is_the_best(tmp_path, capsys):
    row = {"instruction": "Who?", "output": ["Me.", "You."]}
    data.write_jsonl(tmp_path / "a.jsonl", [row])
    data.load(str(tmp_path / "a.jsonl"))
    assert capsys.readouterr().out == (
        "kind: preference, by its column output of two answers or more, of which the "
        "first is the best (LLaMA-Factory)\n"
    )


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Who?", "responses": ["You.", "Me."], "scores": [1, 2]},
        {"instruction": "Who?", "output": ["Me.", "You."]},
        {"messages": DIALOG, "rejected_response": "You."},
    ],
)
def test_a_bad_answer_never_becomes_an_instruction(raw):
    (row,), _ = formats.RowReader("instruction").read_all(raw, 1)
    assert row["messages"] == DIALOG
