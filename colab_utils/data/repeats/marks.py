"""Signs that change what a text says, although its words stay the same."""

from __future__ import annotations

import re

# A sign that counts as a word of its own.
SIGN = (
    r"(?:[<>=!+*/%&|^-]=|&&|\|\||\*\*|//|[-=]>|!(?=\w)|[+*/<>=%^&|~]"
    # A minus or a bullet, but not the hyphen of "well-known".
    r"|(?<![^\W\d_]{2})-(?=[\w.(\[-])|-(?=[\d.(\[-])|(?<!\S)-(?=\s)"
    r"|(?<![\w#@.])[#@.](?=[A-Za-z_])"  # #top, .top, @name
    r"|\[:(?!\])|(?<!\[):\]"  # [:1], [1:]
    r"|\\[A-Za-z]"  # \d, \D
    r"|[$€£¥₹]"
    r"|[\u2600-\u27bf\U0001f300-\U0001faff])"  # emoji
)
# The brackets and quotation marks of programs; an apostrophe within a word is none.
BRACKET = r"""[()\[\]{}]|["`]|(?<!\w)'|'(?!\w)"""
# A lookahead for the first character makes the search five times as fast.
START = (
    r"""(?=[-<>=!+*/%&|^~#@.:\\\[\](){}"'`$€£¥₹"""
    r"\u2600-\u27bf\U0001f300-\U0001faff])"
)
MARK = re.compile(rf"{START}(?:(?<=[A-Za-z])[+#]+(?!\w)|{SIGN}|{BRACKET})")
BRACKETS = re.compile(r"[(\[{]")


def marks_of(text: str) -> str:
    """Return the signs of a text in their order: "C#: 7 * -2" gives "#,*,-"."""
    return ",".join(MARK.findall(text))
