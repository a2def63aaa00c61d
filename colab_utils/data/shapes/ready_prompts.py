"""Cut texts that already have the marks of a chat template into messages.

Many datasets have one column with whole conversations in the format of one model, such
as `<s>[INST] Who? [/INST] Me. </s>`. Another model needs another format, so the marks
are removed.
"""

from __future__ import annotations

import re

from colab_utils.data.schema import BadRow, Message
from colab_utils.data.shapes.template_marks import (
    INST,
    MARKS,
    MORE,
    SIGNS,
    SPECIAL,
    SYS,
    SYSTEM_PROMPT,
    WORDS,
    Marks,
)
from colab_utils.data.shapes.turns import ASSISTANT, ROLES, SYSTEM, USER

PREAMBLE = "Below is an instruction that describes a task"  # of the Alpaca format
PREAMBLE_LENGTH = 1000  # characters before the first mark that are a system message
# A prompt with plain words as marks that asks for an answer.
ASKS = re.compile(r"(?i)\b(?:assistant|response|answer|output|bot)\b>?:?\s*\Z")
WORDY = tuple(marks.name for marks in MARKS if marks.closes is None)
FIRST = "<[#HUB"  # the characters that a mark begins with
QUOTED = "texts with {} in them, which do not begin with it, kept as raw text"


def cut(text: str, notes: list[str]) -> tuple[str, list[Message]] | None:
    """Return (the marks' name, the messages), or None for a text without marks.

    The messages may end in a question. Raises BadRow if the marks are in disorder.
    """
    if not any(rare in text and sign in text for rare, sign in SIGNS):
        return None
    if INST in text:
        first = _trimmed(text[: text.index(INST)])
        system = SYSTEM_PROMPT.fullmatch(first)
        if system or not first:
            start = [{"role": SYSTEM, "content": system[1].strip()}] if system else []
            return INST, _filled([*start, *_llama2(text)])
    for marks in MARKS:
        if marks.sign in text and (found := _cut(text, marks, notes)) is not None:
            return marks.name, _filled(found)
    return None


def cut_prompt(text: str, notes: list[str]) -> list[Message] | None:
    """Return the messages of a prompt that is written as a dialogue, else None.

    A dialogue begins with a mark and asks for the next answer. A prompt that quotes a
    dialogue is not one, and one whose marks are plain words must end in the mark of an
    answer. The answers in it are read and not trained.
    """
    if not _begins(text):
        return None
    found = cut(text, [])
    if found is None or found[1][-1]["role"] != USER:
        return None
    if found[0] in WORDY and not ASKS.search(text):
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


def is_plain(text: str) -> bool:
    """Return in a quick way that a text does not begin with a mark."""
    return text[:1] not in FIRST and not text[:1].isspace()


def _begins(text: str) -> bool:
    """Return whether a text begins with a mark, or as the Alpaca format does."""
    if is_plain(text):
        return False
    text = _trimmed(text)
    return text.startswith((INST, PREAMBLE)) or any(
        marks.opens.match(text) for marks in MARKS
    )


def _cut(text: str, marks: Marks, notes: list[str]) -> list[Message] | None:
    begun = list(marks.opens.finditer(text))
    if marks.closes is None:
        begun = _of_one_format(begun)
    if not begun:
        return None
    first = _trimmed(text[: begun[0].start()])
    if first and not _is_preamble(first, text, begun[0].start(), marks):
        if marks.closes is None:
            notes.append(QUOTED.format(marks.name))
        return None
    roles = [_role(mark[1]) for mark in begun]
    ends = [mark.start() for mark in begun[1:]] + [len(text)]
    found: list[Message] = []
    if first.startswith(PREAMBLE):
        notes.append("the first sentences of the Alpaca format removed")
    elif first:
        found.append({"role": SYSTEM, "content": first})
    for mark, role, end in zip(begun, roles, ends, strict=True):
        content = text[mark.end() : end]
        if marks.closes:
            content, *rest = marks.closes.split(content, maxsplit=1)
            if rest and _trimmed(rest[0]):
                raise BadRow(f"there is text between two turns ({marks.name})")
        content = _trimmed(content)
        if mark[1].lower() in MORE and found and found[-1]["role"] == USER:
            found[-1]["content"] += f"\n\n{content}" if content else ""
        else:
            found.append({"role": role, "content": content})
    return found


def _of_one_format(begun: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the marks with the words of the first question and the first answer.

    An answer may have such words as headings. Returns none if there is no question or
    no answer.
    """
    words = [mark[1].lower() for mark in begun]
    own = [word for word in words if word not in MORE]
    asks = next((word for word in own if _role(word) == USER), "")
    asks = asks or next((word for word in words if word in MORE), "")
    answers = next((word for word in own if _role(word) == ASSISTANT), "")
    if not asks or not answers:
        return []
    kept, last = [], ""
    for mark, word, following in zip(begun, words, [*words[1:], ""], strict=True):
        more = word in MORE and (last != answers or following == asks)
        if word in (asks, answers, "system") or more:
            kept.append(mark)
            last = word
    return kept


def _is_preamble(first: str, text: str, end: int, marks: Marks) -> bool:
    """Return whether the text before the first mark is a system message.

    It is if it matches `preamble`, or if a text in Vicuna's format ends with `</s>`.
    """
    if not marks.preamble or len(first) > PREAMBLE_LENGTH:
        return False
    closed = marks.sign == "USER:" and text.rstrip().endswith("</s>")
    return closed or marks.preamble.match(text[:end]) is not None


def _trimmed(text: str) -> str:
    """Return a text without the spaces and special tokens at both ends."""
    start, end = 0, len(text)
    while start < end and (text[start].isspace() or text[start] in "<["):
        special = next((t for t in SPECIAL if text.startswith(t, start)), "")
        if not special and not text[start].isspace():
            break
        start += len(special) or 1
    while start < end and (text[end - 1].isspace() or text[end - 1] in ">]"):
        special = next((t for t in SPECIAL if text.endswith(t, start, end)), "")
        if not special and not text[end - 1].isspace():
            break
        end -= len(special) or 1
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
    """Remove an empty system message, and the mark of a turn that is to come.

    Raises BadRow if another turn is empty.
    """
    if found and found[-1]["role"] in (ASSISTANT, USER) and not found[-1]["content"]:
        found = found[:-1]
    found = [turn for turn in found if turn["content"] or turn["role"] != SYSTEM]
    for turn in found:
        if not turn["content"]:
            raise BadRow(f"{turn['role']} message is empty")
    return found
