"""Contamination: rows whose text stands in a test set.

A model that has read a test question in training is not tested by it. As in GPT-3
(Brown et al. 2020, appendix C), a text overlaps if it has 13 words in a row in common
with a test text. A shorter test text must be in it as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from colab_utils.data.curation.quality import TextRule
from colab_utils.data.repeats.words import normalize
from colab_utils.data.schema import Row, answer_of, prompt_of

WORDS = 13  # in a row
LEAST_PROMPT, LEAST_ANSWER = 4, 8  # words of a test text that is looked for
COMMON = 10  # test texts; what more of them share is their template


@dataclass(frozen=True)
class Contamination(TextRule):
    """Reject rows that overlap with a test set, and show the common words.

    `lines` has for each run of words the test row's line, and `sizes` the numbers of
    words of the runs. The time is linear in the number of rows.
    """

    sizes: tuple[int, ...] = ()
    lines: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, test: Sequence[Row], words: int = WORDS) -> Contamination:
        """Return the rule for a test set: prompts and answers, runs of `words` words.

        Prompts of fewer than 4 words and answers of fewer than 8 are left out: they are
        in many texts. So are runs that are in more than 10 test texts: they belong to a
        template. Raises ValueError if no text is left.
        """
        lines: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for row in test:
            for least, text in (
                (LEAST_PROMPT, prompt_of(row)),
                (LEAST_ANSWER, answer_of(row)),
            ):
                split = normalize(text).split()
                if len(split) < min(least, words):
                    continue
                found = set(_runs(split, min(words, len(split))))
                counts.update(found)
                for run in found:
                    lines.setdefault(run, row.get("line", 0))
        lines = {run: line for run, line in lines.items() if counts[run] <= COMMON}
        if not lines:
            raise ValueError(
                f"No text of the {len(test):,} test rows can be looked for: prompts "
                f"need {LEAST_PROMPT} words and answers {LEAST_ANSWER}, and at most "
                f"{COMMON} rows may share them. Leave out this rule."
            )
        return cls(tuple(sorted({run.count(" ") + 1 for run in lines})), lines)

    def judge(self, prompt: str, answer: str) -> str | None:
        """Return the first words in common with a test row, and its line."""
        for text in (prompt, answer):
            words = normalize(text).split()
            for size in self.sizes:
                for run in _runs(words, size):
                    if (line := self.lines.get(run)) is not None:
                        return f"contamination: test row {line} has {run!r}"
        return None


def _runs(words: Sequence[str], size: int) -> Iterator[str]:
    """Yield all runs of `size` neighboring words."""
    shifted: Iterable[Sequence[str]] = (words[i:] for i in range(size))
    return map(" ".join, zip(*shifted, strict=False))
