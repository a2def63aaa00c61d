"""Raw rows in the shapes of real files, each with what it is read as."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

from colab_utils.data import schema
from colab_utils.data.schema import Row

from .rows import ASSISTANT, DIALOG, SYSTEM, USER, WORDS

CALL = {"type": "function", "function": {"name": "look", "arguments": {"who": "x"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
# (raw row, kind)
SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"messages": [SYSTEM, *DIALOG]}, schema.INSTRUCTION),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}, *DIALOG]}, schema.INSTRUCTION),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "x", "tool_call_id": "1"},
                ASSISTANT,
            ],
            "tools": [TOOL],
        },
        schema.INSTRUCTION,
    ),
    (
        {"conversations": [{"from": "human", "value": "Who?"}, ASSISTANT, USER]},
        schema.INSTRUCTION,
    ),
    ({"Question": "Who?", "Response": "Me.", "group": 3}, schema.INSTRUCTION),
    (
        {"instruction": "Who?", "input": "x", "output": 3, "history": [["a", "b"]]},
        schema.INSTRUCTION,
    ),
    ({"text": "<s>[INST] Who? [/INST] Me. </s>"}, schema.INSTRUCTION),
    ({"text": "### Human: Who?### Assistant: Me."}, schema.INSTRUCTION),
    ({"text": "Once upon a time, there was."}, schema.COMPLETION),
    ({"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, schema.PREFERENCE),
    (
        {
            "chosen": "\n\nHuman: Who?\n\nAssistant: Me.",
            "rejected": "\n\nHuman: Who?\n\nAssistant: You.",
        },
        schema.PREFERENCE,
    ),
    (
        {"prompt": "Who?", "responses": ["Me.", "You.", "He."], "scores": [1, 2, 0.5]},
        schema.PREFERENCE,
    ),
    (
        {"history": "Who?", "human_ref_A": "Me.", "human_ref_B": "I.", "labels": 1},
        schema.PREFERENCE,
    ),
    ({"prefix": "def f(", "middle": "x", "suffix": "): pass"}, schema.MIDDLE),
    ({"text": "A good film", "label": 1}, schema.CLASSIFICATION),
    ({"title": "A film", "text": "Good.", "label": "x"}, schema.CLASSIFICATION),
    (
        {"question": "Who?", "choices": ["Me.", "You."], "answer": 1, "text": "a b"},
        schema.INSTRUCTION,
    ),
    (
        {"prompt": "Who?", "options": {"text": ["I"], "label": ["A"]}, "answer": "A"},
        schema.INSTRUCTION,
    ),
    (
        {"question": "Who?", "answers": [{"text": "Me.", "start": 3}], "weight": 1},
        schema.INSTRUCTION,
    ),
    ({"row": {"question": "Who?", "answer": "Me."}, "n": 1}, schema.INSTRUCTION),
    (
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "Who?"}]},
                {"role": "assistant", "content": [{"toolUse": {"name": "f"}}]},
                {"role": "user", "content": [{"toolResult": {"content": "x"}}]},
                {"role": "model", "parts": [{"text": "Me."}], "mask": False},
            ],
        },
        schema.INSTRUCTION,
    ),
    (
        {"messages": DIALOG, "rejected_messages": [ASSISTANT | {"content": "x"}]},
        schema.PREFERENCE,
    ),
    ({"instruction": "Who?", "output": ["Me.", "You."]}, schema.PREFERENCE),
    ({"text": "<fim_prefix>a<fim_suffix>b<fim_middle>c"}, schema.MIDDLE),
    ({"prompt": "f(", "suffix": ")", "completion": "x"}, schema.MIDDLE),
    ({"text": "<｜User｜>Who?<｜Assistant｜>Me."}, schema.INSTRUCTION),
]
JUNK: list[Any] = [
    *WORDS,
    *(None, True, False, 0, 1, -1, 0.5, float("nan"), float("inf"), 10**400),
    *("", "\x00", "\u2028", "x" * 100_000, "[1", "[]", '{"a": 1}', "true", "[INST] x"),
    *(
        "<|im_start|>x\n",
        "### Human: a### Assistant: ",
        "\n\nHuman:",
        "USER: ASSISTANT:",
    ),
    *([], {}, [[]], [{}], {"a": []}, [None], [{"role": "user"}], ["a", "b"], [1, "b"]),
]


def damaged(seed: int) -> dict[str, Any]:
    """Return a raw row of a known shape with one to three random faults."""
    draw = random.Random(seed)
    row: Any = copy.deepcopy(draw.choice(SHAPES)[0])
    for _ in range(draw.randint(1, 3)):
        place: Any = row
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = draw.choice(keys)
            inside = isinstance(place[key], (dict, list)) and place[key]
            if inside and draw.random() < 0.8:
                place = place[key]
                continue
            _break(place, key, draw)
            break
    return row if isinstance(row, dict) else {"row": row}


def _break(place: Any, key: Any, draw: random.Random) -> None:
    fault = draw.randrange(4)
    if fault == 0:
        del place[key]
    elif fault == 1 and isinstance(place, list):
        place.insert(key, copy.deepcopy(draw.choice(place)))
    elif fault == 1:
        name = draw.choice(["name", "weight", "loss", "text", "label", "id", "prompt"])
        place[name] = copy.deepcopy(draw.choice(JUNK))
    else:
        place[key] = copy.deepcopy(draw.choice(JUNK))


def check(row: Row) -> None:
    """Assert what holds for any row in the schema."""
    kind = schema.kind_of(row)
    if kind == schema.INSTRUCTION:
        _check_turns(row["messages"])
        assert row["messages"][-1]["role"] == "assistant"
        answers = [t for t in row["messages"] if t["role"] == "assistant"]
        assert any(turn.get("weight") != 0 for turn in answers)
    elif kind == schema.PREFERENCE:
        _check_turns([*row["prompt"], *row["chosen"]])
        _check_turns([*row["prompt"], *row["rejected"]])
        assert row["prompt"][-1]["role"] in ("user", "tool")
        assert row["chosen"] != row["rejected"]
    elif kind == schema.MIDDLE:
        assert row["middle"].strip() and (row["prefix"] + row["suffix"]).strip()
    else:
        assert row["text"].strip() and row.get("label", "label").strip()


def _check_turns(turns: list[schema.Message]) -> None:
    known = {"role", "content", "weight", "tool_calls", "tool_call_id", "name"}
    for turn in turns:
        assert set(turn) <= known and turn.get("weight", 0) == 0
        assert (turn["content"] or "").strip() or turn["tool_calls"]
        for call in turn.get("tool_calls", []):
            assert isinstance(call["function"]["arguments"], dict)
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    assert roles[0] == "user" and turns[-1]["role"] == "assistant"
    assert not any(a == b != "tool" for a, b in itertools.pairwise(roles))
