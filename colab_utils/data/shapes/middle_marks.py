"""Cut texts that have the marks of fill-in-the-middle into prefix, middle and suffix.

The marks are those of StarCoder and Qwen (`<fim_prefix>`, `<|fim_prefix|>`), of Code
Llama (`<PRE>`) and of DeepSeek (`<｜fim▁begin｜>`), with the middle at the end.
"""

from __future__ import annotations

import re

from colab_utils.data.schema import BadRow

MARK = re.compile(
    r"<\|?fim[_-](prefix|suffix|middle)\|?>|<(PRE|SUF|MID)>|<｜fim▁(begin|hole|end)｜>"
)
PARTS = {
    **{"prefix": "prefix", "PRE": "prefix", "begin": "prefix"},
    **{"suffix": "suffix", "SUF": "suffix", "hole": "suffix"},
    **{"middle": "middle", "MID": "middle", "end": "middle"},
}
START = re.compile(r"(?:\s|<s>|<bos>|<｜begin▁of▁sentence｜>)*")
END = re.compile(
    r"(?: ?<EOT>|</s>|<\|(?:endoftext|fim_pad|file_sep)\|>|<｜end▁of▁sentence｜>)\s*\Z"
)


def begins(text: str) -> bool:
    """Return whether a text begins with a mark of a prefix or a suffix."""
    if "<" not in text[:100]:
        return False
    start = START.match(text)
    mark = MARK.match(text, start.end() if start else 0)
    return mark is not None and _part(mark) != "middle"


def _part(mark: re.Match[str]) -> str:
    return PARTS[mark[mark.lastindex or 0]]


def cut(text: str) -> dict[str, str]:
    """Return prefix, middle and suffix of a text that begins with a mark.

    Raises BadRow if a part is missing or occurs twice, or if the middle isn't the last.
    """
    marks = list(MARK.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=True):
        part = _part(mark)
        cell = text[mark.end() : end]
        if mark[2]:  # Code Llama's marks have a space around them
            cell = cell.removeprefix(" ").removesuffix(" " if part != "middle" else "")
        found[part] = cell
    if len(marks) != 3 or len(found) != 3 or [*found][-1] != "middle":
        raise BadRow(
            "its fill-in-the-middle tokens must be one prefix, one suffix and one "
            "middle, with the middle last"
        )
    while ended := END.search(found["middle"]):
        found["middle"] = found["middle"][: ended.start()]
    return found
