"""Whether a word is another word with a typo."""

from __future__ import annotations

from collections.abc import Callable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = _words("a an the this that these those")
# Words that may be added or left out anywhere without another meaning.
FILLERS = ARTICLES | _words(
    """
    of to in on at for from with by as is are was were be been it its which there then
    they them he she his her and so also just really very please kindly me us you your i
    we my our can could would will do does did have has had
    """
)
# Words of greetings, introductions and signatures.
PHRASES = FILLERS | _words(
    """
    sure certainly absolutely course okay ok hello hi hey dear here answer answers
    response question questions solution code q note thank thanks advance regards best
    kind sincerely cheers yours hope hopes helps help helped helpful let know if any
    further more need feel free ask asked happy glad tell what s ll d assistant user
    human ai problem below following follows great day welcome give want like try
    explain requested useful output result example only sent
    """
)
RARE, COMMON = 2, 3  # the rows that have a typo (at most), and a word (at least)
RATIO = 50  # a typo that many rows have is still this much rarer than the word


def one_edit(one: str, other: str) -> str:
    """Return the edit that turns one word into the other: "" if it takes more than one.

    It is "add" (a letter more or less), "replace", or "swap" (of two neighbors).
    """
    if len(one) > len(other):
        one, other = other, one
    start = 0
    while start < len(one) and one[start] == other[start]:
        start += 1
    if len(one) + 1 == len(other):
        return "add" if one[start:] == other[start + 1 :] else ""
    if len(one) != len(other) or one == other:
        return ""
    if one[start + 1 :] == other[start + 1 :]:
        return "replace"
    swapped = one[start : start + 2] == other[start : start + 2][::-1]
    return "swap" if swapped and one[start + 2 :] == other[start + 2 :] else ""


def two_edits(one: str, other: str) -> bool:
    """Return whether two edits of letters turn one word into the other."""
    if abs(len(one) - len(other)) > 2:
        return False
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        above, row = row, [i]
        for j, to in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != to)))
    return row[-1] <= 2


def is_typo(
    one: str, other: str, count: Callable[[str], int], *, name: bool, twice: bool
) -> bool:
    """Return whether one of two different words is a typo of the other.

    A typo is rare, and the word that it stands for is not. `count` returns how many
    rows have a word. Words with digits, and known words such as "army" and "navy",
    differ on purpose. `name` means that one of the words is a name. `twice` means that
    the right word is also elsewhere in the two rows.
    """
    edit, shorter = one_edit(one, other), min(len(one), len(other))
    if not edit and not (shorter >= 6 and one[0] == other[0] and two_edits(one, other)):
        return False
    if any(sign.isdigit() for sign in one + other):
        return False
    if one in PHRASES and other in PHRASES:
        return True
    rare, common = sorted((count(one), count(other)))
    if rare > RARE and rare * RATIO > common:
        # Both are words. "apples" may still be "apple", and "bread" may be "bead".
        inflected = one.removesuffix("s") == other.removesuffix("s")
        return not name and (inflected or (edit in ("add", "swap") and shorter >= 4))
    known = twice or common >= COMMON or one in PHRASES or other in PHRASES
    if name and not twice:
        return known and one[0] == other[0] and bool(edit)
    if known:
        return shorter >= 2
    return shorter >= (5 if edit == "replace" else 4)
