"""Signs that change what a text says, although its words stay the same."""

from __future__ import annotations

import re
from collections import Counter

MARK = re.compile(
    r"(?<![\w)\]])-(?=\.?\d)"  # of a negative number
    r"|[<>=!]=|&&|\|\||!(?=\w)"  # operators of programs
    r"|(?<=[A-Za-z])[+#]+(?!\w)"  # C++, C#
    r"|(?<![\w#@.])[#@.](?=[A-Za-z_])"  # #top, .top, @name
    r"|\\[A-Za-z]"  # \d, \D
    r"|[$€£¥₹]"
    r"|[\u2600-\u27bf\U0001f300-\U0001faff]"  # emoji
)
BRACKETS = re.compile(r"[(\[{]")


def marks_of(text: str) -> str:
    """Return the signs of a text in their order: "C#: 7 * -2" gives "# -"."""
    return " ".join(MARK.findall(text))


def same_marks(one: str, other: str) -> bool:
    """Return whether two texts have the same signs, in any order.

    As many brackets of other types also make another text: x[0] and x(0).
    """
    if Counter(MARK.findall(one)) != Counter(MARK.findall(other)):
        return False
    a, b = Counter(BRACKETS.findall(one)), Counter(BRACKETS.findall(other))
    return a == b or sum(a.values()) != sum(b.values())
