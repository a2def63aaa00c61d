"""Guess the next tokens of an answer: those that followed the same tokens before.

Answers often repeat their prompt: quotations, names, code in which one line changes. A
step of the model reads several guesses for little more time than one token, and keeps
those that it would have chosen itself. So guesses change the speed, but no token.
Source: prompt lookup decoding (Saxena 2023), after Leviathan et al. 2022.
"""

from __future__ import annotations

SIZES = (3, 2)  # the numbers of last tokens that are looked up, in this order
# A step with three guesses took 1.46 times as long as one without after 64 tokens, and
# 1.76 times after 1,900 (Llama 2 7B, H100, bench/lookup.py). It is worth it if
# p + p^2 + p^3 > 0.76, for a probability p that a guess is right.
LEAST = 0.5
FADE = 0.9  # how much each new token leaves of the share `right`


class Lookup:
    """The tokens of a conversation, and guesses at the next ones.

    `right` is the recent share of guesses at one token that were right. They are also
    counted while `guesses` returns none, so that the share can rise again.
    """

    def __init__(self, prompt: list[int]) -> None:
        self.tokens: list[int] = []
        # By the last tokens: the place after them.
        self.places: dict[tuple[int, ...], int] = {}
        self.right = 0.6  # so the first guesses are tried
        for token in prompt:
            self._append(token)

    def add(self, token: int) -> None:
        """Append a token of the answer, and note whether it had been guessed."""
        if guess := self._found(1):
            hit = guess[0] == token
            self.right = FADE * self.right + (1 - FADE) * hit
        self._append(token)

    def guesses(self, most: int) -> list[int]:
        """Return up to `most` next tokens, or none if they are too seldom right."""
        return self._found(most) if self.right > LEAST else []

    def _append(self, token: int) -> None:
        # The last tokens themselves become a place only now: no token followed them.
        for size in SIZES:
            if len(self.tokens) >= size:
                self.places[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def _found(self, most: int) -> list[int]:
        """Return what has followed the last tokens, where they stood before."""
        for size in SIZES:
            place = self.places.get(tuple(self.tokens[-size:]))
            if place is not None:
                return self.tokens[place : place + most]
        return []
