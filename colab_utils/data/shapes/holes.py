"""Cut a hole into a text: words, lines or characters, and find functions to cut."""

from __future__ import annotations

import ast
import random
import re
from typing import NamedTuple

from colab_utils.data.schema import BadRow


class Hole(NamedTuple):
    """The three parts of a text; `hole._asdict()` is a row of fill-in-the-middle."""

    prefix: str
    middle: str
    suffix: str


def cut(text: str, first: int, last: int) -> Hole:
    """Return a text with a hole from character `first` to `last`."""
    return Hole(text[:first], text[first:last], text[last:])


def words(text: str, draw: random.Random, most: int = 4) -> Hole:
    """Return a text without one to `most` words, each with the space before it."""
    found = list(re.finditer(r"\s*\S+", text))
    if not found:
        raise BadRow("a blank text has no words")
    start = draw.randrange(len(found))
    end = min(start + draw.randint(1, most), len(found)) - 1
    return cut(text, found[start].start(), found[end].end())


def lines(text: str, draw: random.Random, least: int = 1, most: int = 1) -> Hole:
    """Return a text without `least` to `most` lines, which follow its first line.

    The indentation of the first of them is in the prefix, and the end of the last one
    in the suffix. Neither of the two is blank. Raises BadRow if the text has no such
    lines.
    """
    found = text.splitlines(keepends=True)
    count = draw.randint(least, most)
    pairs = [(n, n + count - 1) for n in range(1, len(found) - count + 1)]
    pairs = [(a, b) for a, b in pairs if found[a].strip() and found[b].strip()]
    if not pairs:
        raise BadRow(f"a text of {len(found)} lines has no hole of {count} lines")
    start, end = draw.choice(pairs)
    first = (
        sum(map(len, found[:start])) + len(found[start]) - len(found[start].lstrip())
    )
    last = sum(map(len, found[:end])) + len(found[end].rstrip("\r\n"))
    return cut(text, first, last)


def characters(text: str, draw: random.Random) -> Hole:
    """Return a text without what is between two random places (Bavarian et al. 2022).

    Raises BadRow for a text without characters.
    """
    if not text:
        raise BadRow("an empty text has no characters")
    first, last = sorted(draw.sample(range(len(text) + 1), 2))
    return cut(text, first, last)


def functions(source: str, least: int = 6, most: int = 40) -> list[str]:
    """Return the functions of Python code that have `least` to `most` lines.

    Each is as it would stand at the top level, without decorators. Code that Python
    can't parse has none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    rows = source.split("\n")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = rows[node.lineno - 1 : node.end_lineno]
            if least <= len(body) <= most:
                found.append("\n".join(row[node.col_offset :] for row in body) + "\n")
    return found
