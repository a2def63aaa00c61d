"""Chunks cover a document, overlap as asked, and are never too long."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import creation, demo
from colab_utils.creation import Document
from colab_utils.demo import sentences

WORDS = st.sampled_from(
    ["tower", "is", "white.", "Caf\u00e9", "\u4e2d\u6587\u3002", "x" * 40, "\U0001f44d"]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400),
    st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", "\n\n", ""]))).map(
        lambda parts: "".join(map("".join, parts))
    ),
)


def split(text: str, tokenizer, size: int, overlap: int) -> list[creation.Chunk]:
    return creation.chunk([Document("a", text)], tokenizer, size, overlap)


def token_starts(text: str, tokenizer) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [start for start, _ in encoding["offset_mapping"]]


def check(text: str, tokenizer, size: int, overlap: int) -> None:
    chunks = split(text, tokenizer, size, overlap)
    covered = {i for one in chunks for i in range(one.start, one.end)}
    assert all(i in covered or sign.isspace() for i, sign in enumerate(text))
    for one in chunks:
        assert one.text == text[one.start : one.end].strip()
        ids = tokenizer(one.text, add_special_tokens=False)["input_ids"]
        assert len(ids) == one.tokens <= size
    starts = token_starts(text, tokenizer)
    for one, after in pairwise(chunks):
        assert one.start < after.start and one.end < after.end
        shared = sum(after.start <= start < one.end for start in starts)
        # Not in the middle of a character, which may have five tokens.
        assert overlap <= shared <= 2 * overlap + 5 * bool(overlap)


@settings(deadline=None)
@given(TEXTS, st.integers(16, 40), st.floats(0, 0.25))
def test_chunks_of_any_text(tokenizer, text, size, share):
    check(text, tokenizer, size, int(share * size))


@settings(deadline=None, max_examples=30)
@given(TEXTS, st.integers(16, 40), st.floats(0, 0.25))
def test_chunks_with_a_byte_level_tokenizer(byte_level, text, size, share):
    check(text, byte_level, size, int(share * size))


@pytest.fixture(scope="module")
def byte_level(make_byte_level):
    return make_byte_level()


@pytest.fixture(scope="module")
def page() -> str:
    import random

    draw = random.Random(0)
    paragraphs = [" ".join(sentences.paragraph(f, draw)) for f in demo.facts()[:40]]
    return "\n\n".join(paragraphs)


@pytest.mark.parametrize("size", [64, 200])
def test_chunks_begin_and_end_with_sentences(page, tokenizer, size):
    chunks = split(page, tokenizer, size, size // 8)
    check(page, tokenizer, size, size // 8)
    assert len(chunks) > 5
    begins = [page[: one.start].rstrip()[-1:] in ("", ".") for one in chunks]
    assert all(one.text[-1] == "." for one in chunks)
    # At 64 tokens, some sentences are longer than the overlap may be.
    assert all(begins) if size == 200 else sum(begins) > len(begins) / 2
    words = {word.strip() for word in page.split()}
    assert all({one.text.split()[0], one.text.split()[-1]} <= words for one in chunks)


def test_chunks_end_with_paragraphs_that_fit(page, tokenizer):
    chunks = split(page, tokenizer, 200, 0)
    assert all(page[one.end :][:2] in ("\n\n", "") for one in chunks)
    assert "".join(page[one.start : one.end] for one in chunks) == page


def test_short_document_is_one_chunk(tokenizer):
    (one,) = split("The tower is white.", tokenizer, 64, 8)
    assert (one.document, one.number, one.text) == ("a", 1, "The tower is white.")
    assert split(" \n ", tokenizer, 64, 8) == []


def test_chunks_number_each_document(tokenizer, page):
    documents = [Document("a", page[:2000]), Document("b", page[:2000])]
    chunks = creation.chunk(documents, tokenizer, 64, 8)
    half = len(chunks) // 2
    numbers = list(range(1, half + 1))
    assert [one.number for one in chunks] == numbers * 2
    assert [one.document for one in chunks] == ["a"] * half + ["b"] * half


@pytest.mark.parametrize(("size", "overlap"), [(15, 0), (64, 17), (64, -1)])
def test_chunk_refuses_sizes_that_cannot_work(tokenizer, size, overlap):
    with pytest.raises(ValueError, match=f"{size} tokens with an overlap of {overlap}"):
        split("a", tokenizer, size, overlap)
