"""Find llama.cpp's name for the way in which a byte-level tokenizer cuts text.

A tokenizer first cuts text into pieces, and BPE merges bytes only within a piece.
llama.cpp has such rules under fixed names. A name is chosen by the pieces of probe
texts, because tokenizers write the same rule in many ways.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA_3 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{REST}"
QWEN_2 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{SIGNS}|{REST}"
GPT_2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# The regular expressions of llama.cpp know no case of letters outside of ASCII.
NOT_LOWER, NOT_UPPER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?(?:{NOT_LOWER}*{NOT_UPPER}+|{NOT_LOWER}+{NOT_UPPER}*)"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}"
)


class Rule(NamedTuple):
    """How llama.cpp cuts text under a name."""

    patterns: tuple[str, ...]  # each cuts the pieces of the one before
    # A piece that is a token stays whole, even if the merges don't lead to it.
    ignore_merges: bool = False


RULES = {
    "llama-bpe": Rule((LLAMA_3,), ignore_merges=True),
    "smaug-bpe": Rule((LLAMA_3,)),
    "qwen2": Rule((QWEN_2,)),
    "smollm": Rule((r"\p{N}", GPT_2)),
    "tekken": Rule((TEKKEN,), ignore_merges=True),
    "gpt-2": Rule((GPT_2,)),
}
PROBES = (
    "Hello World, it's 12345678 and 3.14; WE'LL see, I'M sure they'd've.",
    "  two  spaces   three\tand a tab \t end  ",
    "lines\nof\n\n text\r\n\r\n  with spaces \n \nand an end\n",
    "(brackets), --dashes--, !!!???... a/b//c\n/d <|x|>\n\n#x_y @z $5%",
    "x86_64 H2O 4th abc123def camelCase HTTPServer aB Ab AB ab",
    "日本語の文、漢字。 中文123 ひらがなカタカナ",
    "🙂👩‍👩‍👧 ok🙂ok ½ ² Ⅷ ٣٤٥ naïve façade Ελλάδα Россия",
)
# Texts that a rule of llama.cpp may cut differently, as it does for many users: letters
# with combining marks, capitals outside of ASCII after small letters.
RARE_PROBES = ("e\u0301te\u0301 น้ำ ไทย हिन्दी عَرَبِيّ", "straßeÜber éÉtat ИванПетр")


def find_name(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.

    Prints a line when llama.cpp cuts rare texts differently. Raises ValueError when no
    name fits.
    """
    ignores = bool(json.loads(tokenizer.to_str())["model"].get("ignore_merges"))
    if tokenizer.pre_tokenizer is None:
        raise _cannot_cut("it does not cut text before it merges")
    own = _pieces(tokenizer.pre_tokenizer, PROBES)
    rules = {name: _llama_cpp(rule) for name, rule in RULES.items()}
    others = {name: _pieces(rule, PROBES) for name, rule in rules.items()}
    found = [name for name in RULES if others[name] == own]
    if not found:
        nearest = max(others, key=lambda name: _first_difference(own, others[name]))
        raise _cannot_cut(_difference(own, others[nearest], nearest))
    fitting = [name for name in found if RULES[name].ignore_merges == ignores]
    if not fitting:
        verb = "keeps a word whole that" if ignores else "merges even where a word"
        raise _cannot_cut(
            f"it {verb} is a token (ignore_merges = {str(ignores).lower()}), unlike "
            f"llama.cpp's {found[0]!r}"
        )
    rare = _pieces(tokenizer.pre_tokenizer, RARE_PROBES)
    equal = [n for n in fitting if _pieces(rules[n], RARE_PROBES) == rare]
    if not equal:
        other = _pieces(rules[fitting[0]], RARE_PROBES)
        print(f"llama.cpp cuts rare texts differently: {_difference(rare, other)}")
    return (equal or fitting)[0]


def _llama_cpp(rule: Rule) -> PreTokenizer:
    """Return a pre-tokenizer that cuts text as llama.cpp does."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _pieces(cut: PreTokenizer, texts: Sequence[str]) -> list[str]:
    return [piece for text in texts for piece, _ in cut.pre_tokenize_str(text)]


def _first_difference(one: list[str], other: list[str]) -> int:
    """Return the index of the first piece that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _difference(own: list[str], other: list[str], name: str = "") -> str:
    """Return a sentence about the first piece that differs."""
    from tokenizers import decoders

    place = _first_difference(own, other)
    text = decoders.ByteLevel().decode
    mine, its = (repr(text(found[place : place + 1])) for found in (own, other))
    nearest = f" (its {name!r} is nearest)" if name else ""
    return f"it cuts off {mine} where llama.cpp cuts off {its}{nearest}"


def _cannot_cut(reason: str) -> ValueError:
    return ValueError(
        "llama.cpp would cut text differently from this byte-level tokenizer: "
        f"{reason}."
    )
