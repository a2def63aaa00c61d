"""Whether a word is another word with a typo."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that may be added or left out anywhere without another meaning.
FREE = _words("a an the please kindly")
FILLERS = FREE | _words(
    """
    this that these those of to in on at for from with by as is are was were be been it
    its which there then they them he she his her and so also just really very me us you
    your i we my our can could would will do does did have has had
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
# One letter more, less or at another place gives another known word.
CONFUSED = _words(
    """
    casual causal trail trial diary dairy angel angle united untied martial marital
    quite quiet quit scared sacred board broad unclear nuclear clam calm bread beard
    silver sliver tired tried reserve reverse compliment complement desert dessert
    later latter county country prostate prostrate through though thorough thought
    dinner diner supper super moral morale costume custom coma comma cannon canon
    exit exist cost coast plan plain friend fiend caution cation insulin inulin
    stating starting staring planing planning hoping hopping lose loose chose choose
    wondering wandering alter altar adverse averse breath breadth assess access
    conserve converse expect except principal principle personal personnel salon
    saloon martin marten sting strong stain strain stand strand price prince model
    modal mode node noun none boarder border counter encounter crash cash brush bush
    found fond friction fiction mortality morality infection inflection addition
    addiction reality realty
    """
)
# Ends of terms for which another end is another thing: sulfate and sulfite.
ENDS = _words("ate ite ide ane ene yne ine ase ose one ole sia gia mia tis sis ous rus")
# Letters that hardly ever follow each other in English words: "kq", "vr", "jz" ...
CLASH = re.compile(
    "b[kqvwxz]|c[bfgjpvwxz]|d[qz]|f[bjkqvxz]|g[jkqvx]|h[gjqvxz]|j[^aeiou]|k[jqvxz]|"
    "l[jqx]|m[ghjqvxz]|oq|p[jqvxz]|q[^nrsu]|r[qz]|sz|t[jq]|u[jqw]|"
    "v[bcdfghjklmqstvwxz]|w[gjqvxz]|x[jknqrvxz]|y[jkqxy]|z[bcdfghjknpqrsvwx]"
)
# Two consonants with which hardly any word begins.
ONSET = re.compile(
    "(?!b[lr]|c[chlrz]|d[hrw]|f[lr]|g[hlnrw]|k[hlnr]|ll|m[cn]|p[hlnrst]|rh|"
    "s[chklmnpqtvw]|t[hrsw]|v[l]|w[hr]|z[hw])[b-df-hj-np-tv-xz]{2}"
)
VOWELS = frozenset("aeiou")
ROMAN = frozenset("ivxlcdm")
COMMON, KNOWN = 3, 6  # the rows that have a word, at least
LONG = 24  # words of a row
RATIO = 50  # a typo that many rows have is still this much rarer than the word


def one_edit(one: str, other: str) -> str:
    """Return the edit that turns one word into the other: "" if it takes more than one.

    It is "add" (a letter more or less), "replace", or "swap" (of two neighbors).
    """
    if len(one) > len(other):
        one, other = other, one
    start = same_start(one, other)
    if len(one) + 1 == len(other):
        return "add" if one[start:] == other[start + 1 :] else ""
    if len(one) != len(other) or one == other:
        return ""
    if one[start + 1 :] == other[start + 1 :]:
        return "replace"
    swapped = one[start : start + 2] == other[start : start + 2][::-1]
    return "swap" if swapped and one[start + 2 :] == other[start + 2 :] else ""


def same_start(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many letters two words share at their start, or words two texts."""
    for start, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return start
    return min(len(one), len(other))


def may_be_typo(one: str, other: str) -> bool:
    """Return in a quick way whether a word may be another word with a typo.

    A typo leaves the first letter as it is, and the last one if it swaps no letters. An
    added last letter is a plural or another form of the word.
    """
    return (
        -2 < len(one) - len(other) < 2
        and one[0] == other[0]
        and (one[-1] == other[-1] or (one[-2:] == other[:-3:-1] and len(one) > 3))
    )


def is_typo(
    one: str,
    other: str,
    count: Callable[[str], int],
    *,
    name: bool,
    twice: bool,
    size: int,
    again: bool = False,
    code: bool = False,
) -> bool:
    """Return whether one of two different words is a typo of the other.

    A typo is rare, and the word that it stands for is not. `count` returns how many
    rows have a word. Words with digits, and known words such as "army" and "navy",
    differ on purpose. `name` means that one of the words is a name, `twice` that the
    right word is also elsewhere in the two rows. Rows of a large `size`, in words,
    hardly differ in one letter on purpose. It is 0 for a text that is very short.
    `again` means that the rows differ in another typo, and `code` that the words are
    of a program.
    """
    edit, shorter = one_edit(one, other), min(len(one), len(other))
    if not edit or not (one + other).isalpha() or max(len(one), len(other)) < 4:
        return False
    rare, common = sorted((count(one), count(other)))
    if _other_word(one, other, edit, everyday=rare * RATIO <= common):
        return False
    if rare > 2 and rare * RATIO > common and not again:
        return False  # both are words
    long = again or size >= LONG
    strict = size == 0 and not (again and code)
    if strict and (rare * RATIO > common or _is_vowel(one, other)):
        return False
    if {one, other} <= CONFUSED or (edit == "replace" and _is_vowel(one, other)):
        return long and rare * (RATIO // 5 if again else RATIO) <= common
    if _clashes(one, other) != _clashes(other, one):
        return True
    if common >= COMMON and _opens_oddly(one, other) != _opens_oddly(other, one):
        return True
    filler = one in PHRASES or other in PHRASES
    if name:
        return twice or (long and common >= KNOWN)
    if shorter < 4:
        return filler or common >= KNOWN
    if edit == "swap" or (edit == "add" and shorter >= 5 and _doubled(one, other)):
        return True
    if edit == "add" and shorter >= 9 and common >= COMMON:
        return True
    if long:
        least = KNOWN if edit == "replace" and not (again and code) else COMMON
        unknown = edit == "add" or (again and code and rare < 2 <= common)
        return twice or filler or common >= least or (unknown and shorter >= 5)
    return filler or common >= KNOWN


def are_several(words: Iterable[tuple[str, str]], count: Callable[[str], int]) -> bool:
    """Return whether two or more of the pairs are a word and an unknown typo of it.

    One letter may differ on purpose, but hardly ever in two words at once.
    """
    alike = {
        pair
        for pair in words
        if one_edit(*pair) and min(map(count, pair)) < 2 <= max(map(count, pair))
    }
    return len({one for one, _ in alike}) > 1 < len({other for _, other in alike})


def _other_word(one: str, other: str, edit: str, *, everyday: bool) -> bool:
    """Return whether the edit gives a known word or another term.

    An `everyday` word such as "write" is not a term.
    """
    if {one, other} <= PHRASES:
        return True
    start = same_start(one, other)
    letters = one[start : start + 1] + other[start : start + 1]
    if not letters.isascii() or ROMAN.issuperset(one + other):
        return True
    ends = {one[-3:], other[-3:]}
    return not everyday and edit == "replace" and len(ends) == 2 and ends <= ENDS


def _is_vowel(one: str, other: str) -> bool:
    """Return whether a vowel stands for another one, but not within a long word.

    "lactose" and "lactase" are two words, and so are "proscribe" and "prescribe".
    """
    start = same_start(one, other)
    near_an_end = start < 3 or start >= len(one) - 4
    letters = {one[start : start + 1], other[start : start + 1]}
    return near_an_end and letters <= VOWELS


def _clashes(word: str, other: str) -> bool:
    """Return whether a word can't be English next to the letter that differs."""
    start = max(same_start(word, other) - 1, 0)
    return CLASH.search(word[start : start + 3]) is not None


def _opens_oddly(word: str, other: str) -> bool:
    """Return whether the letter that differs is in a start that no word has."""
    return same_start(word, other) <= 2 and ONSET.match(word) is not None


def _doubled(one: str, other: str) -> bool:
    """Return whether the longer word has a letter twice that the other has once."""
    longer = max(one, other, key=len)
    start = same_start(one, other)
    return longer[start] == longer[start - 1]
