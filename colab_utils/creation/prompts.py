"""All prompts: each is one user turn that asks for JSON."""

from __future__ import annotations

QUESTIONS = """\
Write {count} questions and their answers from the passage below.

- Each answer must follow from the passage alone. Do not add other knowledge.
- A question must make sense to somebody who does not see the passage: name things in \
full, and do not mention the passage, the text or the author.
- Ask about different things, in different words.

Reply with JSON only: [{{"question": "...", "answer": "..."}}, ...]

Passage:
{passage}"""

# The kinds of rewriting of Evol-Instruct (Xu et al. 2023, WizardLM), in our words.
EVOLUTIONS = {
    "deeper": "Ask for a reason, a consequence or a comparison that the passage gives.",
    "broader": "Ask about another fact of the passage, in the same field.",
    "constraint": "Add one requirement for the form of the answer, such as its length "
    "or its order.",
}

EVOLVE = """\
Rewrite this question so that it is harder to answer. {how}

- The answer must follow from the passage alone.
- The question must make sense to somebody who does not see the passage.
- Add at most 20 words.

Reply with JSON only: {{"question": "...", "answer": "..."}}

Question: {question}
Answer: {answer}

Passage:
{passage}"""

IMPROVE = """\
Correct and improve the answer to this question.

- It must be true according to the passage, complete, and no longer than needed.
- If the answer is good already, repeat it word for word.

Reply with JSON only: {{"answer": "..."}}

Question: {question}
Answer: {answer}

Passage:
{passage}"""

JUDGE = """\
Give this question and its answer a score from 1 to 10.

- 9 or 10: the passage supports all of the answer, and the question is clear by itself.
- 7 or 8: right, with a small flaw in completeness or wording.
- 4 to 6: partly right, or the question is unclear without the passage.
- 1 to 3: wrong, not in the passage, empty, or no answer to this question.

Reply with JSON only: {{"reason": "...", "score": 7}}

Question: {question}
Answer: {answer}

Passage:
{passage}"""
