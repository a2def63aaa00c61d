"""Near repeats of a row, as data that was collected twice has them, and rows that only
look like repeats."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable

Texts = tuple[str, str]
OPENINGS = (
    "Sure! ",
    "Q: ",
    "Question: ",
    "Please help me with this. ",
    "Hello! ",
    "Sure, here is the answer:\n\n",
    "Certainly! Here's what you asked for:\n",
    "Can you tell me: ",
)
ENDINGS = (
    " Thanks!",
    " Thank you in advance.",
    "\n\nBest regards,\nJohn",
    "\n\nHope this helps!",
    " Let me know if you have any questions.",
    " Thanks, Maria",
)
# Phrases that no rule and no word list was written for. The rules were developed while
# looking at the first half only.
UNKNOWN_OPENINGS = (
    "Good morning everyone! ",
    "I was wondering about something. ",
    "Quick one for you: ",
    "Sorry to bother you. ",
    "Here's a little challenge. ",
    "My apologies if this is a silly thing to ask. ",
    "Great question! ",
    "No problem at all. ",
    "As requested:\n",
    "Of course, no worries!\n\n",
    "Let me think about this for a moment. ",
    "Happy to assist!\n",
)
UNKNOWN_ENDINGS = (
    " I'd really appreciate it.",
    " Much obliged!",
    " Looking forward to hearing from you.",
    " Have a wonderful evening!",
    " It's been bugging me all week.",
    "\n\nCheers, everybody",
    " Don't hesitate to reach out.",
    " Does that make sense?",
    "\n\nI trust this clears things up.",
    " Please rate my reply.",
    " Feedback is always appreciated!",
    " Any pointers are highly appreciated.",
)
HELD_OUT_OPENINGS = (
    "Greetings, friends. ",
    "Could somebody enlighten me? ",
    "Something has been puzzling me lately. ",
    "Apologies for the late message. ",
    "Pardon my ignorance. ",
    "Let's try another one. ",
    "What a fascinating topic! ",
    "My pleasure!\n",
    "Absolutely, I can assist with that.\n\n",
    "Alright, here we go:\n",
    "Thanks for reaching out. ",
    "Let's tackle it together. ",
)
HELD_OUT_ENDINGS = (
    " I'm grateful for anything you can share.",
    " Your guidance would mean a lot to me.",
    " Take care!",
    " Hoping to hear back soon.",
    " I've been stuck on it for hours.",
    "\n\nWarm wishes from all of us",
    " Feel free to come back whenever you like.",
    " Was that what you were looking for?",
    "\n\nI believe that covers everything.",
    " Kindly leave a rating.",
    " Wishing you a lovely weekend!",
    " Shout if something is unclear.",
)
NAMES = ("Zelda", "Quentin", "Ottilie", "Bartholomew", "Xenia", "Yusuf", "Ignatius")


def case(draw: random.Random, text: str) -> str:
    return draw.choice([str.upper, str.lower, str.title, str.swapcase])(text)


def spacing(draw: random.Random, text: str) -> str:
    words = [w + draw.choice(["", "", " ", "\t", "\n"]) for w in text.split(" ")]
    return draw.choice(["", "\n", "  "]) + " ".join(words) + draw.choice(["", " \n"])


def punctuation(draw: random.Random, text: str) -> str:
    text = text.strip()
    if draw.random() < 0.3:
        text = text.replace(", ", " ").replace("'s", "’s")
    if text[-1:] in {".", "?", "!"}:
        return text[:-1] + draw.choice(["", " " + text[-1], "!", "..."])
    return text + draw.choice([".", "!", "?"])


def typos(draw: random.Random, text: str) -> str:
    """Change one or two words of four letters or more."""
    pieces = re.split(r"(\W+)", text)
    places = [i for i, p in enumerate(pieces) if len(p) >= 4 and p.isalpha()]
    for i in draw.sample(places, min(len(places), draw.choice([1, 2]))):
        pieces[i] = typo(draw, pieces[i])
    return "".join(pieces)


def typo(draw: random.Random, word: str) -> str:
    at, letter = draw.randrange(1, len(word) - 1), draw.choice(string.ascii_lowercase)
    return draw.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ]
    )


def swap(draw: random.Random, text: str) -> str:
    """Let two neighboring words change places."""
    words = text.split(" ")
    places = [
        i
        for i in range(len(words) - 1)
        if not re.search(r"[^a-zA-Z']", words[i] + words[i + 1])
    ]
    if not places:
        return text
    at = draw.choice(places)
    words[at : at + 2] = words[at + 1], words[at]
    return " ".join(words)


def boilerplate(draw: random.Random, text: str) -> str:
    if draw.random() < 0.5:
        return draw.choice(OPENINGS) + text
    return text + draw.choice(ENDINGS)


def unknown(draw: random.Random, text: str) -> str:
    if draw.random() < 0.5:
        return draw.choice(UNKNOWN_OPENINGS) + text
    return text + draw.choice(UNKNOWN_ENDINGS)


def held_out(draw: random.Random, text: str) -> str:
    if draw.random() < 0.5:
        return draw.choice(HELD_OUT_OPENINGS) + text
    return text + draw.choice(HELD_OUT_ENDINGS)


def reorder(draw: random.Random, text: str) -> str:
    """Shuffle the sentences."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    draw.shuffle(sentences)
    return " ".join(sentences)


EDITS: dict[str, Callable[[random.Random, str], str]] = {
    edit.__name__: edit
    for edit in (case, spacing, punctuation, typos, swap, boilerplate, reorder)
}

# Edits that the rules were not developed on, or only half of them.
UNKNOWN: dict[str, Callable[[random.Random, str], str]] = {
    edit.__name__: edit for edit in (unknown, held_out)
}


def near(draw: random.Random, row: Texts, kind: str) -> Texts:
    """Return a near repeat of a row: the prompt, the answer or both edited."""
    edit, where = (EDITS | UNKNOWN)[kind], draw.choice(["prompt", "answer", "both"])
    prompt = edit(draw, row[0]) if where != "answer" else row[0]
    answer = edit(draw, row[1]) if where != "prompt" else row[1]
    return prompt, answer


def other_numbers(draw: random.Random, row: Texts) -> Texts:
    """Change one number wherever it stands in the row."""
    number = draw.choice(re.findall(r"\d+", row[0]))
    new = str(int(number) + draw.choice([1, 2, 5, 10]))
    return (
        re.sub(rf"(?<!\d){number}(?!\d)", new, row[0]),
        re.sub(rf"(?<!\d){number}(?!\d)", new, row[1]),
    )


def other_number_in_prompt(draw: random.Random, row: Texts) -> Texts:
    number = draw.choice(re.findall(r"\d+", row[0]))
    return row[0].replace(number, str(int(number) + 3), 1), row[1]


def other_name(draw: random.Random, row: Texts) -> Texts:
    """Replace a name wherever it stands in the row."""
    name = draw.choice(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", row[0]))
    new = draw.choice(NAMES)
    return row[0].replace(name, new), row[1].replace(name, new)


def other_word(draw: random.Random, row: Texts, words: list[str]) -> Texts:
    """Replace one word of the prompt by another word of the data."""
    old = draw.choice([w for w in row[0].split() if w.isalpha() and len(w) >= 4][1:])
    new = draw.choice([w for w in words if w.casefold() != old.casefold()])
    return re.sub(rf"\b{old}\b", new, row[0], count=1), row[1]
