"""Fingerprints: numbers that stand for texts, computed for many texts at once."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from colab_utils.data.repeats import fingerprints
from colab_utils.data.repeats.marks import BRACKETS, marks_of

SIGNED = st.text(
    st.one_of(
        st.sampled_from("-.<>=!&|+#@*/%^~:;?'\"`\\([{}])$€£¥₹☀➿😀"),
        st.sampled_from("Cé5_, \n\x1e\0\ud800"),
        st.characters(),
    ),
    max_size=12,
)


def signs_of(text: str) -> tuple[str, list[str]]:
    return marks_of(text), BRACKETS.findall(text)


@given(st.lists(SIGNED, min_size=1, max_size=5))
@example(["7 * -.5", "-5", "C++", "C+", ".top", r"\D"])
@example(["a - b. C", "", "€", "I'm !x && ||"])
@settings(deadline=None, max_examples=150)
def test_what_is_next_to_signs_has_the_signs_of_the_text(texts):
    joined = fingerprints._join(texts)
    near = dict(fingerprints._near_signs(joined))
    whole = joined.split(fingerprints.END)[1:-1]
    for i, text in enumerate(whole):
        assert signs_of(near.get(i, "")) == signs_of(text)
