"""A model as a judge of answers, asked twice, and what that shows about the judge.

A judge prefers the first answer, or the second, whatever they say (Zheng et al. 2023,
"Judging LLM-as-a-Judge"). So each pair is shown in both orders, and only the verdicts
that agree count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils import generation
from colab_utils.data.schema import Message
from colab_utils.data.tokens.spans import shared
from colab_utils.evaluation.likelihood import log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Generator = Callable[[list[list[Message]]], list[str]]

PROMPT = """\
Which answer to the question is better? Reply with one letter, A or B.

Question: {question}

Answer A: {first}

Answer B: {second}"""
LETTERS = ("A", "B")
LETTER = re.compile(r"\W*(?:answer\s+)?([AB])\b(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts about pairs of answers: 1 (the first is better), -1 or 0.

    `straight` are those for the order that was given, `swapped` those for the other
    order, in which the first answer is shown second. 0 is a text that names neither.
    """

    straight: list[int]
    swapped: list[int]

    @property
    def winners(self) -> list[int]:
        """The verdicts on which both orders agree; 0 where they don't."""
        pairs = zip(self.straight, self.swapped, strict=True)
        return [one if one == other else 0 for one, other in pairs]

    @property
    def agreeing(self) -> float:
        """The share of pairs with the same winner in both orders."""
        return sum(map(abs, self.winners)) / len(self.winners)

    @property
    def shown_first(self) -> float:
        """The share of readable verdicts for the answer that was shown first.

        0.5 for a judge without a preference for a place; NaN if none is readable.
        """
        placed = [*self.straight, *(-one for one in self.swapped)]
        readable = [one for one in placed if one]
        return readable.count(1) / len(readable) if readable else float("nan")


def as_text(messages: Sequence[Message]) -> str:
    """Return the turns before an answer as a judge reads them.

    A single turn is its text. If there are more, each begins with its role.
    """
    if len(messages) == 1:
        text: str = messages[0]["content"]
        return text
    return "\n\n".join(f"{t['role'].capitalize()}: {t['content']}" for t in messages)


def judge(
    ask: Generator,
    questions: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
) -> Verdicts:
    """Ask a generator twice about each question which of its two answers is better.

    `ask` takes conversations and returns a text for each: A or B, also as "Answer B."
    Raises ValueError if there are no pairs, or not two answers for each question.
    """
    if not questions or not len(questions) == len(first) == len(second):
        raise ValueError(
            f"A judge compares two answers to each question, but there are "
            f"{len(questions)} questions, and {len(first)} and {len(second)} answers."
        )

    def shown(ones: Sequence[str], others: Sequence[str]) -> list[int]:
        rows = zip(questions, ones, others, strict=True)
        texts = [PROMPT.format(question=q, first=a, second=b) for q, a, b in rows]
        replies = ask([[{"role": "user", "content": text}] for text in texts])
        return [_read(reply) for reply in replies]

    straight, swapped = shown(first, second), shown(second, first)
    return Verdicts(straight, [-one for one in swapped])


def by_likelihood(model: PreTrainedModel, tokenizer: Tokenizer) -> Generator:
    """Return a judge that replies with the letter that the model finds more probable.

    So it always names one, also if the model would write something else.
    """

    def ask(conversations: list[list[Message]]) -> list[str]:
        twice = [turns for turns in conversations for _ in LETTERS]
        found = likelihoods(model, tokenizer, twice, LETTERS * len(conversations))
        pairs = zip(found[::2], found[1::2], strict=True)
        return ["A" if a >= b else "B" for a, b in pairs]

    return ask


def likelihoods(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[Message]],
    answers: Sequence[str],
) -> list[float]:
    """Return the log-probability of each answer after its prompt, in nats.

    The prompts are those of `generation.answers`. A prompt and its answer are tokenized
    together, as in training, and without the end of the turn.
    """
    gap = generation.before_answer(tokenizer)
    requests = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = generation.prompt_text(tokenizer, generation.as_messages(prompt))
        whole = _ids(tokenizer, text + gap + answer)
        # The last token of the prompt may merge with the answer's first.
        size = shared(_ids(tokenizer, text), whole[:-1])
        requests.append((whole[:size], whole[size:]))
    return [one.total for one in log_likelihoods(model, requests)]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text in which the template has written the BOS token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _read(text: str) -> int:
    """Return 1 for a text that begins with A, -1 for B, and 0 for any other."""
    found = LETTER.match(text)
    return 0 if found is None else 1 if found[1].upper() == "A" else -1
