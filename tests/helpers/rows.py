"""Rows that several tests of the data subpackage use."""

from __future__ import annotations

from hypothesis import strategies as st

from colab_utils import data

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "Me."}
SYSTEM = {"role": "system", "content": "Be brief."}
DIALOG = [USER, ASSISTANT]

WORDS = ["user", "assistant", "system", "human", "gpt", "Who?", " ", "\ud800"]
_leaves = st.none() | st.booleans() | st.integers() | st.floats()
_leaves |= st.text() | st.sampled_from(WORDS)
any_json = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def row(question: str, answer: str = "yes", line: int = 0, **labels: str) -> data.Row:
    """Return a row in the schema."""
    raw = {"question": question, "answer": answer, **labels}
    return data.to_row(raw, line)


@st.composite
def similar_texts(draw: st.DrawFn) -> list[str]:
    """Draw copies of a few texts, each with a few words changed, removed or added."""
    word = st.sampled_from([f"w{n}" for n in range(draw(st.integers(1, 40)))])
    bases = draw(st.lists(st.lists(word, max_size=40), min_size=1, max_size=3))
    texts = []
    for _ in range(draw(st.integers(0, 14))):
        words = list(draw(st.sampled_from(bases)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(words)))
            words[at : at + draw(st.integers(0, 2))] = draw(st.lists(word, max_size=2))
        texts.append(" ".join(words))
    return texts


def without_near_duplicates(rows: list[data.Row]) -> list[data.Row]:
    """Keep the first row of each group, as 01_create_dataset does."""
    first = data.near_duplicates(rows)
    return [row for i, row in enumerate(rows) if first[i] == i]
