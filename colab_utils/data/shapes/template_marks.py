"""The marks of chat templates in texts: what opens and closes a turn in each format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from colab_utils.data.shapes.turns import ASSISTANT, SYSTEM, USER

# They may stand between two turns.
SPECIAL = (
    *("<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|endoftext|>", "[gMASK]", "<sop>", "<BOS_TOKEN>"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
)
WORDS = {
    **{"human": USER, "user": USER, "instruction": USER, "question": USER},
    **{"assistant": ASSISTANT, "response": ASSISTANT, "answer": ASSISTANT},
    **{"output": ASSISTANT, "bot": ASSISTANT, "system": SYSTEM},
}
MORE = ("input", "context")  # continue the question before them


@dataclass(frozen=True)
class Marks:
    """The marks of one format. Group 1 of `opens` is the role of the turn.

    A text before the first mark is a system message if it matches `preamble`. If
    `closes` is None, the marks are plain words, which a document may have, too.
    """

    name: str
    sign: str  # a text without it is not of this format
    opens: re.Pattern[str]
    closes: re.Pattern[str] | None = None
    preamble: re.Pattern[str] | None = None


def _special(
    name: str, opens: str, closes: str, sign: str = "<|", preamble: str | None = None
) -> Marks:
    before = re.compile(preamble) if preamble else None
    return Marks(name, sign, re.compile(opens), re.compile(closes), before)


MARKS = (
    _special(
        "<|im_start|>",  # ChatML; Phi-4 and Kimi have no line break after the role
        r"<\|im_(?:start|user|assistant|system)\|>\s*(\w+)"
        r"(?:<\|im_(?:sep|middle)\|>|[ \t]*\n)",
        r"<\|im_end\|>",
    ),
    _special(
        "<|start_header_id|>",  # Llama 3, Llama 4, Granite
        r"<\|(?:start_header_id|header_start|start_of_role)\|>\s*(\w+)\s*"
        r"<\|(?:end_header_id|header_end|end_of_role)\|>",
        r"<\|(?:eot_id|eom_id|eot|eom|end_of_text)\|>",
    ),
    _special(
        "<start_of_turn>",
        r"<start_of_turn>\s*(\w+)[ \t]*\n",
        "<end_of_turn>",
        "<start_of_turn>",
    ),
    _special(
        "<|START_OF_TURN_TOKEN|>",
        r"<\|START_OF_TURN_TOKEN\|><\|(\w+)_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
    ),
    _special(
        "<|start|>",  # gpt-oss
        r"<\|start\|>(\w+)(?:<\|channel\|>final)?<\|message\|>",
        r"<\|(?:end|return)\|>",
    ),
    _special(
        "<｜User｜>",
        "<｜(User|Assistant)｜>",
        "<｜end▁of▁sentence｜>",
        "<｜",
        r"\s*<｜begin▁of▁sentence｜>",
    ),
    _special(
        "<|assistant|>",
        r"(?i)<\|(system|user|prompter|assistant|observation)\|>",
        r"</s>|<\|end\|>|<\|endoftext\|>",
    ),
    Marks(
        "###",
        "### ",
        re.compile(
            r"### (Human|User|Assistant|System|Instruction|Input|Context|Response"
            r"|Question|Answer|Output)(?::|[ \t]*\n)"
        ),
        preamble=re.compile(r"(?ms)(?!.*^#)"),  # text without a heading
    ),
    Marks("Human:", "Human:", re.compile(r"(?:^|\n\n)(Human|Assistant):")),
    Marks("User:", "User:", re.compile(r"(?:^|\n)(User|Assistant):")),
    Marks("<human>:", "<human>:", re.compile(r"(?:^|\n)<(human|bot)>:")),
    Marks(
        "USER:",
        "USER:",
        re.compile(r"(?:^|(?<=[\s>]))(USER|ASSISTANT|SYSTEM):"),
        preamble=re.compile(r"(?i)(?:<s>|\s)*(?:a chat|a conversation|you are) "),
    ),
)
INST, SYS = "[INST]", re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
SYSTEM_PROMPT = re.compile(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
# (a character, a text that has it): to look for the character first is faster.
SIGNS = tuple(
    (next(char for char in sign if char in "<[#:"), sign)
    for sign in dict.fromkeys((INST, *(marks.sign for marks in MARKS)))
)
# A special token of a format that isn't known.
UNREAD = re.compile(
    r"<\|\w{2,40}\|>|<｜[^｜<>\n]{1,40}｜>|\[\|\w{2,20}\|\]|<(?:start|end)_of_turn>"
    r"|<fim[_-]\w{2,10}>|\[/?(?:INST|SUFFIX|PREFIX|MIDDLE)\]"
)


UNREAD_SIGNS = {
    "<": ("|>", "｜>", "_of_turn>", "<fim"),
    "[": ("[|", "INST]", "FIX]", "[MIDDLE]"),
}


def unread(text: str) -> str:
    """Return the first special token in a text, or ""."""
    if "<" not in text and "[" not in text:
        return ""
    for char, signs in UNREAD_SIGNS.items():
        if char in text and any(sign in text for sign in signs):
            found = UNREAD.search(text)
            return found[0] if found else ""
    return ""
