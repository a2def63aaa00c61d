"""Cut texts that already have the marks of a chat template into messages.

Many datasets have one column with whole conversations in the format of one model, such
as `<s>[INST] Who? [/INST] Me. </s>`. Another model needs another format, so the marks
are removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from colab_utils.data.schema import BadRow, Message
from colab_utils.data.shapes.turns import ASSISTANT, ROLES, SYSTEM, USER

# They may stand between two turns.
SPECIAL = (
    *("<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>"),
    "<|endoftext|>",
)
WORDS = {
    **{"human": USER, "user": USER, "instruction": USER, "question": USER},
    **{"assistant": ASSISTANT, "response": ASSISTANT, "answer": ASSISTANT},
    **{"output": ASSISTANT, "system": SYSTEM},
}
MORE = ("input", "context")  # continue the question before them
PREAMBLE = "Below is an instruction that describes a task"  # of the Alpaca format
PREAMBLE_LENGTH = 1000  # characters before the first mark that are a system message


@dataclass(frozen=True)
class Marks:
    """The marks of one format. Group 1 of `opens` is the role of the turn."""

    name: str
    sign: str  # a text without it is not of this format
    opens: re.Pattern[str]
    closes: re.Pattern[str] | None  # special tokens; None if the marks are plain words
    preamble: bool = False  # whether a text may stand before the first mark


def _special(name: str, opens: str, closes: str) -> Marks:
    return Marks(name, name, re.compile(opens), re.compile(closes))


MARKS = (
    _special("<|im_start|>", r"<\|im_start\|>\s*(\w+)[ \t]*\n", r"<\|im_end\|>"),
    _special(
        "<|start_header_id|>",
        r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>",
        r"<\|eot_id\|>|<\|eom_id\|>",
    ),
    _special("<start_of_turn>", r"<start_of_turn>\s*(\w+)[ \t]*\n", "<end_of_turn>"),
    _special(
        "<|assistant|>",
        r"<\|(system|user|prompter|assistant)\|>",
        r"</s>|<\|end\|>|<\|endoftext\|>",
    ),
    Marks(
        "###",
        "### ",
        re.compile(
            r"### (Human|User|Assistant|System|Instruction|Input|Context|Response"
            r"|Question|Answer|Output):"
        ),
        None,
        preamble=True,
    ),
    Marks("Human:", "Human:", re.compile(r"(?:^|\n\n)(Human|Assistant):"), None),
    Marks(
        "USER:",
        "USER:",
        re.compile(r"(?:^|(?<=[\s>]))(USER|ASSISTANT|SYSTEM):"),
        None,
        preamble=True,
    ),
)
INST, SYS = "[INST]", re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


SIGNS = (INST, *(marks.sign for marks in MARKS))


def cut(text: str, notes: list[str]) -> tuple[str, list[Message]] | None:
    """Return (the marks' name, the messages), or None for a text without marks.

    The messages may end in a question. Raises BadRow if the marks are in disorder.
    """
    for sign in SIGNS:
        if sign in text:
            break
    else:
        return None
    if INST in text and _trimmed(text[: text.index(INST)]) == "":
        return INST, _filled(_llama2(text))
    for marks in MARKS:
        if marks.sign in text and (found := _cut(text, marks, notes)) is not None:
            return marks.name, _filled(found)
    return None


def cut_prompt(text: str, notes: list[str]) -> list[Message] | None:
    """Return the messages of a prompt that is written as a dialogue, else None.

    A dialogue begins with a mark and asks for the next answer. A prompt that quotes a
    dialogue is not one. The answers in it are read and not trained.
    """
    if not _begins(text):
        return None
    found = cut(text, [])
    if found is None or found[1][-1]["role"] != USER:
        return None
    notes.append("prompts cut at the marks of their format")
    return [
        {**turn, "weight": 0} if turn["role"] == ASSISTANT else turn
        for turn in found[1]
    ]


def cut_answer(text: str, notes: list[str]) -> list[Message] | None:
    """Return the messages of a whole dialogue that ends in the answer, else None."""
    found = cut(text, notes) if _begins(text) else None
    return found[1] if found else None


def without_end(answer: str) -> str:
    """Return an answer without the special token that ends it in its format."""
    answer = _trimmed(answer)
    for marks in MARKS:
        ends = list(marks.closes.finditer(answer)) if marks.closes else []
        if ends and ends[-1].end() == len(answer):
            return _trimmed(answer[: ends[-1].start()])
    return answer


def _begins(text: str) -> bool:
    """Return whether a text begins with a mark, or as the Alpaca format does."""
    text = _trimmed(text)
    return text.startswith((INST, PREAMBLE)) or any(
        marks.opens.match(text) for marks in MARKS
    )


def _cut(text: str, marks: Marks, notes: list[str]) -> list[Message] | None:
    pieces = marks.opens.split(text)
    first = _trimmed(pieces[0])
    plain = marks.closes is None
    if (
        len(pieces) < 3
        or (first and not marks.preamble)
        or len(first) > PREAMBLE_LENGTH
    ):
        return None
    roles = [_role(mark) for mark in pieces[1::2]]
    if plain and not {USER, ASSISTANT} <= set(roles):
        return None
    found: list[Message] = []
    if first.startswith(PREAMBLE):
        notes.append("the first sentences of the Alpaca format removed")
    elif first:
        found.append({"role": SYSTEM, "content": first})
    for mark, role, content in zip(pieces[1::2], roles, pieces[2::2], strict=True):
        if marks.closes:
            content, *rest = marks.closes.split(content, maxsplit=1)
            if rest and _trimmed(rest[0]):
                raise BadRow(f"there is text between two turns ({marks.name})")
        content = _trimmed(content)
        if mark.lower() in MORE and found and found[-1]["role"] == USER:
            found[-1]["content"] += f"\n\n{content}" if content else ""
        else:
            found.append({"role": role, "content": content})
    return found


def _trimmed(text: str) -> str:
    """Return a text without the spaces and special tokens at both ends."""
    start, end = 0, len(text)
    while start < end:
        size = text[start].isspace() or next(
            (len(t) for t in SPECIAL if text.startswith(t, start)), 0
        )
        if not size:
            break
        start += size
    while start < end:
        size = text[end - 1].isspace() or next(
            (len(t) for t in SPECIAL if text.endswith(t, start, end)), 0
        )
        if not size:
            break
        end -= size
    return text[start:end]


def _role(mark: str) -> str:
    word = mark.lower()
    role = USER if word in MORE else WORDS.get(word) or ROLES.get(word)
    if not role:
        raise BadRow(f"unknown role {word[:40]!a}")
    return role


def _llama2(text: str) -> list[Message]:
    found: list[Message] = []
    for piece in text.split(INST)[1:]:
        asked, closed, answer = piece.partition("[/INST]")
        if not closed:
            raise BadRow("a [INST] without its [/INST]")
        if system := SYS.match(asked):
            found.append({"role": SYSTEM, "content": system[1].strip()})
            asked = asked[system.end() :]
        answer, *rest = answer.split("</s>", maxsplit=1)
        if rest and _trimmed(rest[0]):
            raise BadRow("there is text between two turns ([INST])")
        found.append({"role": USER, "content": asked.strip()})
        found.append({"role": ASSISTANT, "content": _trimmed(answer)})
    return found


def _filled(found: list[Message]) -> list[Message]:
    """Remove an empty system message, and the mark of an answer that is to come.

    Raises BadRow if another turn is empty.
    """
    if found and found[-1]["role"] == ASSISTANT and not found[-1]["content"]:
        found = found[:-1]
    found = [turn for turn in found if turn["content"] or turn["role"] != SYSTEM]
    for turn in found:
        if not turn["content"]:
            raise BadRow(f"{turn['role']} message is empty")
    return found
