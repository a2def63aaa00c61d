"""What the rules of `quality` look for in a text: phrases, addresses, numbers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

WORDS = re.compile(r"\w+")
RUN = 5  # times that a phrase stands in a row
LONGEST_PHRASE = 4  # words
REPEATED_LINES = 0.3  # of the characters, as in Gopher (Rae et al. 2021, table A1)

# The most frequent words of each language, without single letters, which are names in
# formulas and code. A word of two languages counts for both.
FREQUENT_WORDS = {
    code: frozenset(words.split())
    for code, words in {
        "de": "der die das und ist nicht ein eine zu den mit von sie ich es auf für "
        "im dem auch sich wie wird sind oder aus bei nach werden hat einen",
        "en": "the of and to in is that it for was on are with as be this at by "
        "you not or from have an they which can your what will has",
        "es": "el la los las es de que en un una por con para no se del al como más "
        "pero su son lo está hay este cuando muy también",
        "fr": "le la les et est de des que en un une pour dans ce qui ne pas sur il "
        "elle avec vous nous sont au du plus par mais cette être",
        "it": "il la gli di che in un una con non si del della sono lo come "
        "più ma anche al dei nel questo alla essere ha",
        "nl": "de het een en is van dat in niet op te zijn met voor ik je er aan ook "
        "als door naar maar bij om deze wordt hebben was",
        "pt": "os as de que em um uma para com não se do da por mais no na "
        "como ao são também ou foi está dos das",
    }.items()
}

# Each refusal has one of these; the pattern is searched only then.
REFUSAL_HINTS = (
    "an ai",
    "as a ai",
    "artificial intelligence",
    "language model",
    "sorry",
    "apologi",
    "unfortunately",
    "assist",
)
HELP = r"(?:assist|help|fulfil?l|comply|provide|answer|do that|generate|create|write)"
CANNOT = r"(?:can(?:no|['’])t|can not|am (?:not able|unable) to|won['’]t)"
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b(?= ?,| (?:language|large|chat|model|"
    r"assistant|system|i\b))"
    r"|\bas a (?:large )?language model\b"
    r"|\bi(?:['’]m| am) (?:just |only )?an ai\b(?! \w+(?:er|ist)\b)"
    rf"|\b(?:sorry|apologi[sz]e|unfortunately)\b[^.!?]{{0,20}}\bi {CANNOT} {HELP}\b"
    r"|\bi (?:can(?:no|['’])t|can not|am (?:not able|unable) to) assist\b",
    re.I,
)

# A letter of two bytes in UTF-8 that was decoded as cp1252 or Latin-1: "Ã©" for "é". In
# Portuguese, a word in capitals can end with "Ã" before a quotation mark.
CONTINUED = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
MOJIBAKE = re.compile(
    "\ufffd"
    "|Ã[\x80-\xaa\xac-\xba\xbc-\xbf]"
    f"|(?<![A-ZÀ-Þ])Ã[{CONTINUED}]"
    "|Â[\x80-\xaa\xac-\xba\xbc-\xbf]"
    "|â€[\x9d¢¦™˜“”œž]"
    "|ï»¿|ðŸ|ð\x9f"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
URL = re.compile(
    r"\b(?:https?|ftp)://[^\s/$.?#\"'<>][^\s\"'<>]*|\bwww\.[\w-]+\.\w[^\s\"'<>]*", re.I
)
# Domains that are kept for examples (RFC 2606), and the reader's own machine.
EXAMPLE = re.compile(r"(?:[/.@]example\.\w+|//(?:localhost|127\.0\.0\.1))\b", re.I)

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.I)
# Addresses that are kept for examples (RFC 2606), and an account without a person.
NOBODY = re.compile(r"@(?:\w+\.)*example\.\w+$|\.(?:example|test|invalid)$|^git@", re.I)
PHONE = re.compile(
    r"(?<![\w.+])(?:\+\d{1,3}[ .(-]{1,2}\d[\d ().-]{5,14}\d|\+\d{10,15}"
    r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)
CARD = re.compile(
    r"(?<![\w.-])[2-6]\d{3}(?:([ -]?)\d{4})(?:\1\d{2,6}){1,3}(?![\w.-]*\d)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?\b")
IP = re.compile(r"(?<![\w.-])(?<!version )\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.I)
# Each of these numbers has 7 signs or more of this kind.
NUMBER = re.compile(r"\d[\d ().-]{5,}\d")
FICTION = re.compile(r"555[ .-]01\d\d$")  # numbers that belong to no phone


def personal_data(text: str) -> str | None:
    """Return the kind and the first signs of the first personal data, or None."""
    if "@" in text:
        for found in EMAIL.finditer(text):
            if not NOBODY.search(found[0]):
                return f"e-mail address {found[0][:3]}..."
    if not NUMBER.search(text):
        return None
    for pattern, is_one, name in (
        (PHONE, is_phone, "phone number"),
        (CARD, luhn, "card number"),
        (IBAN, mod_97, "account number"),
        (IP, is_public, "IP address"),
    ):
        for found in pattern.finditer(text):
            if is_one(found[0]):
                return f"{name} {found[0][:3]}..."
    return None


def is_phone(number: str) -> bool:
    """Return whether a number has 8 to 15 digits and is not kept for fiction."""
    count = sum(sign.isdecimal() for sign in number)
    return 8 <= count <= 15 and not FICTION.search(number)


def luhn(number: str) -> bool:
    """Return whether the last of 13 to 19 digits is the check digit of ISO 7812."""
    digits = [int(sign) for sign in number if sign.isdecimal()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    total = sum(digits[::-2]) + sum(doubled)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and total % 10 == 0


def mod_97(number: str) -> bool:
    """Return whether the check digits of an IBAN are right (ISO 13616)."""
    signs = number.replace(" ", "")
    moved = signs[4:] + signs[:4]
    return (
        15 <= len(signs) <= 34
        and int("".join(str(int(s, 36)) for s in moved)) % 97 == 1
    )


def is_public(address: str) -> bool:
    """Return whether an IPv4 address is one that a machine on the internet can have."""
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def repeated_run(words: Sequence[str]) -> Sequence[str] | None:
    """Return a phrase of at most 4 words that stands 5 times in a row, or None."""
    for size in range(1, LONGEST_PHRASE + 1):
        same = 0  # neighboring words that equal those `size` words before
        for i in range(size, len(words)):
            same = same + 1 if words[i] == words[i - size] else 0
            if same >= size * (RUN - 1):
                return words[i - size + 1 : i + 1]
    return None
