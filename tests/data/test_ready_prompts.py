"""Texts with the marks of a chat template are cut into messages."""

from __future__ import annotations

import json

import pytest
from helpers.rows import DIALOG, SYSTEM

from colab_utils import data
from colab_utils.data import schema
from colab_utils.data.shapes import formats, ready_prompts

TWO = [*DIALOG, {"role": "user", "content": "Why?"}]
TWO += [{"role": "assistant", "content": "So."}]
ALPACA = (
    "Below is an instruction that describes a task. Write a response.\n\n"
    "### Instruction:\nWho?\n\n### Input:\nHere.\n\n### Response:\nMe."
)


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("[INST]", "<s>[INST] Who? [/INST] Me. </s><s>[INST] Why? [/INST] So. </s>"),
        ("[INST]", "[INST] Who? [/INST] Me.</s>[INST] Why? [/INST] So.</s>"),
        ("[INST]", " <s> [INST]Who?[/INST]Me.<s>[INST]Why?[/INST]So."),
        (
            "<|im_start|>",
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
            "<|endoftext|>",
        ),
        (
            "<|start_header_id|>",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nMe.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>",
        ),
        (
            "<|assistant|>",
            "<|user|>\nWho?</s>\n<|assistant|>\nMe.</s>\n<|user|>\nWhy?</s>\n"
            "<|assistant|>\nSo.</s>",
        ),
        (
            "<|assistant|>",
            "<|prompter|>Who?<|endoftext|><|assistant|>Me.<|endoftext|>"
            "<|prompter|>Why?<|endoftext|><|assistant|>So.<|endoftext|>",
        ),
        (
            "<start_of_turn>",
            "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nMe."
            "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n"
            "<start_of_turn>model\nSo.<end_of_turn>\n",
        ),
        ("###", "### Human: Who?### Assistant: Me.### Human: Why?### Assistant: So."),
        (
            "###",
            "### User:\nWho?\n\n### Answer:\nMe.\n### User:\nWhy?\n### Answer:\nSo.",
        ),
        (
            "Human:",
            "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant: So.",
        ),
        ("USER:", "USER: Who? ASSISTANT: Me.</s>USER: Why? ASSISTANT: So.</s>"),
        ("User:", "User: Who?\nAssistant: Me.\nUser: Why?\nAssistant: So."),
        ("<human>:", "<human>: Who?\n<bot>: Me.\n<human>: Why?\n<bot>: So."),
        (
            "###",
            "### Instruction\nWho?\n### Response\nMe.\n"
            "### Instruction\nWhy?\n### Response\nSo.",
        ),
        (
            "<|im_start|>",  # Phi-4
            "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>Me."
            "<|im_end|><|im_start|>user<|im_sep|>Why?<|im_end|>"
            "<|im_start|>assistant<|im_sep|>So.<|im_end|>",
        ),
        (
            "<|im_start|>",  # Kimi
            "<|im_user|>user<|im_middle|>Who?<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>Me.<|im_end|>"
            "<|im_user|>user<|im_middle|>Why?<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>So.<|im_end|>",
        ),
        (
            "<|start_header_id|>",  # Llama 4
            "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWho?<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\nMe.<|eot|>"
            "<|header_start|>user<|header_end|>\n\nWhy?<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\nSo.<|eot|>",
        ),
        (
            "<|start_header_id|>",  # Granite
            "<|start_of_role|>user<|end_of_role|>Who?<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>Me.<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|>Why?<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>So.<|end_of_text|>\n",
        ),
        (
            "<|START_OF_TURN_TOKEN|>",
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Me.<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>So.<|END_OF_TURN_TOKEN|>",
        ),
        (
            "<｜User｜>",
            "<｜begin▁of▁sentence｜><｜User｜>Who?<｜Assistant｜>Me.<｜end▁of▁sentence｜>"
            "<｜User｜>Why?<｜Assistant｜>So.<｜end▁of▁sentence｜>",
        ),
        (
            "<|start|>",
            "<|start|>user<|message|>Who?<|end|><|start|>assistant<|channel|>final"
            "<|message|>Me.<|end|><|start|>user<|message|>Why?<|end|>"
            "<|start|>assistant<|message|>So.<|return|>",
        ),
        (
            "<|assistant|>",  # GLM
            "[gMASK]<sop><|user|>\nWho?<|assistant|>\nMe.<|user|>\nWhy?"
            "<|assistant|>\nSo.<|user|>",
        ),
    ],
)
def test_text_is_cut_at_its_marks(mark, text):
    reader = formats.RowReader()
    row, kind = reader.read({"text": text}, 1)
    assert (row["messages"], kind) == (TWO, "instruction")
    assert list(reader.tally().by) == [
        ("instruction", f"by its column text, cut at the marks {mark}")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho? [/INST] Me. </s>",
        "<|system|>\nBe brief.</s>\n<|user|>\nWho?</s>\n<|assistant|>\nMe.</s>",
        "### System: Be brief.\n### Human: Who?\n### Assistant: Me.",
        "Be brief. USER: Who? ASSISTANT: Me.</s>",
        "Be brief.\n\n### Instruction:\nWho?\n\n### Response:\nMe.",
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Who?<｜Assistant｜>Me.",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Who?[/INST]Me.</s>",
    ],
)
def test_system_messages_and_preambles_are_kept(text):
    assert data.to_messages({"text": text}) == [SYSTEM, *DIALOG]


def test_alpaca_input_follows_the_question_and_its_preamble_is_named():
    reader = formats.RowReader()
    row, _ = reader.read({"text": ALPACA}, 1)
    texts = [turn["content"] for turn in row["messages"]]
    assert texts == ["Who?\n\nHere.", "Me."]
    assert reader.tally().repairs == {
        "the first sentences of the Alpaca format removed": 1
    }


@pytest.mark.parametrize(
    "text",
    [
        "Once [INST] was a mark. [/INST] It is.",
        "Text about <|im_start|>user\nand its friends<|im_end|>",
        "## Notes\n### Instruction: read this.\nThen rest.",
        "The human: a story. Human: yes.",
        "x" * 1001 + "\n### Human: Who?\n### Assistant: Me.",
        "Call USER: now",
        "The manual.\n\nUSER: root\nASSISTANT: none\n\nThen restart the mill.",
        "In the log you see USER: root and ASSISTANT: none. Then restart.",
        "# FAQ\n\nSome words.\n\n### Question: Who?\n\n### Answer: Me.",
        "A log:\nUser: Who?\nAssistant: Me.",
        "About <｜User｜>Who?<｜Assistant｜>Me.",
    ],
)
def test_text_that_only_mentions_marks_is_raw_text(text):
    assert data.to_row({"text": text}, 1) == {"text": text, "line": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[INST] Who? [/INST]", "the roles must alternate"),
        ("[INST] Who?", r"a \[INST\] without its \[/INST\]"),
        ("[INST] Who? [/INST] Me.</s> and more", "text between two turns"),
        ("<|im_start|>user\nWho?<|im_end|>x<|im_start|>assistant\nMe.", "between two"),
        ("<|im_start|>robot\nWho?<|im_end|>\n<|im_start|>user\nMe.", "unknown role"),
        ("[INST] [/INST] Me.", "user message is empty"),
        ("### Human:\n### Assistant: Me.", "user message is empty"),
    ],
)
def test_broken_marks(text, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row({"text": text}, 1)
    assert data.to_row({"text": text}, 1, "completion")["text"] == text


@pytest.mark.parametrize(
    "prompt",
    [
        "\n\nHuman: Who?\n\nAssistant:",
        "[INST] Who? [/INST]",
        "### Human: Who?\n### Assistant:",
    ],
)
def test_marks_of_a_prompt_are_removed(prompt):
    assert data.to_messages({"prompt": prompt, "completion": "Me."}) == DIALOG


def test_an_answer_about_marks_is_kept_whole():
    answer = "[INST] Who? [/INST] Me."
    assert (
        data.to_messages({"q": "Give an example.", "a": answer})[1]["content"] == answer
    )


@pytest.mark.slow
def test_long_runs_of_spaces_and_special_tokens_take_linear_time():
    text = "[INST] Who? [/INST] Me." + "</s> " * 200_000
    assert data.to_messages({"text": text}) == DIALOG
    row = data.to_row({"text": "[INST] Who? [/INST] Me." + " " * 2_000_000 + "x"}, 1)
    assert row["messages"][1]["content"].startswith("Me. ")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Me.<|im_end|>"),
        ("<s>[INST] Who? [/INST]", "Me. </s>"),
    ],
)
def test_marks_after_an_answer_are_removed_with_those_of_its_prompt(prompt, answer):
    assert data.to_messages({"prompt": prompt, "completion": answer}) == DIALOG


@pytest.mark.parametrize(
    "prompt",
    [
        "Is the customer content?\n\nUSER: I bought a lamp. ASSISTANT: Thank you.",
        "Human: A lamp.\n\nAssistant: Which color was it?",
        "Explain: ### Human: hi ### Assistant: hello",
        "User: A lamp.\nAssistant: Which?\nUser: The red one.",
        "Human: A lamp.\n\nAssistant: Which?\n\nHuman: The red one.",
    ],
)
def test_a_prompt_that_quotes_a_dialogue_is_kept_whole(prompt):
    row = {"prompt": prompt, "completion": "no"}
    assert [turn["content"] for turn in data.to_messages(row)] == [prompt, "no"]


def test_examples_in_a_prompt_are_not_trained():
    prompt = "### Question: Tree? ### Answer: pine ### Question: Fish? ### Answer:"
    turns = data.to_messages({"prompt": prompt, "completion": "carp"})
    assert [turn["content"] for turn in turns] == ["Tree?", "pine", "Fish?", "carp"]
    assert [turn.get("weight", 1) for turn in turns[1::2]] == [0, 1]


def test_a_better_answer_that_quotes_a_dialogue_is_kept_whole():
    chosen = "Here it is. USER: Who? ASSISTANT: Me."
    row = data.to_row({"prompt": "Write one.", "chosen": chosen, "rejected": "No."}, 1)
    assert row["chosen"][0]["content"] == chosen


def test_headings_in_an_answer_are_no_turns():
    text = "### Instruction:\nWrite.\n\n### Response:\n# Mill\n\n### Context:\nOld.\n\n"
    text += "### Output:\nGo."
    asked, answer = data.to_messages({"text": text})
    assert asked["content"] == "Write."
    assert answer["content"] == "# Mill\n\n### Context:\nOld.\n\n### Output:\nGo."


def test_a_context_may_precede_each_question():
    part = "### Context:\nHere.\n### Question:\n{}\n### Answer:\n{}\n"
    turns = data.to_messages({"text": part.format("Who?", "Me.") * 2})
    assert [turn["content"] for turn in turns] == ["Here.\n\nWho?", "Me."] * 2


def test_a_dialogue_within_a_document_is_counted():
    reader = formats.RowReader()
    text = "In the log you see USER: root and ASSISTANT: none."
    assert reader.read({"text": text}, 1)[0]["text"] == text
    repair = ready_prompts.QUOTED.format("USER:")
    assert reader.tally().repairs == {repair: 1}


def test_messages_in_a_text_column_are_read():
    assert data.to_messages({"text": json.dumps(DIALOG)}) == DIALOG


@pytest.mark.parametrize(
    ("raw", "mark"),
    [
        ({"text": "<|turn|>user\nWho?<|end_turn|>"}, "<|turn|>"),
        ({"text": "[|user|]Who?[|assistant|]Me."}, "[|user|]"),
        ({"text": "[SUFFIX]a[PREFIX]b"}, "[SUFFIX]"),
        ({"question": "Who?", "answer": "Me.<|im_end|>"}, "<|im_end|>"),
        ({"prompt": "<|ask|>Who?", "chosen": "Me.", "rejected": "You."}, "<|ask|>"),
        ({"prefix": "<｜a▁b｜>x", "middle": "y", "suffix": ""}, "<｜a▁b｜>"),
    ],
)
def test_special_tokens_that_stay_in_texts_are_named(tmp_path, capsys, raw, mark):
    plain = {name: "words" + name for name in raw}
    data.write_jsonl(tmp_path / "a.jsonl", [raw, raw, plain])
    data.load(str(tmp_path / "a.jsonl"))
    printed = capsys.readouterr().out
    named = f"unknown template, trained as text: {schema.escape(mark)} (2 rows)"
    assert named in printed
    data.write_jsonl(tmp_path / "b.jsonl", [raw] + [plain] * 200)
    data.load(str(tmp_path / "b.jsonl"))
    assert "unknown template" not in capsys.readouterr().out
