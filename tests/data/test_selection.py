"""Selection of rows that differ, compared with slow references."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils.data.curation import selection


def some(count: int, width: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("how", selection.WAYS)
def test_select_returns_different_rows_and_repeats(how):
    vectors = some(50)
    found = selection.select(how, vectors, 20, seed=3)
    assert len(set(found)) == 20 and set(found) <= set(range(50))
    assert found == selection.select(how, vectors, 20, seed=3)
    assert sorted(selection.select(how, vectors, 50)) == list(range(50))


@pytest.mark.parametrize("how", selection.WAYS)
def test_select_takes_equal_and_zero_vectors(how):
    vectors = np.zeros((9, 3), dtype=np.float32)
    vectors[:4] = 1
    assert len(set(selection.select(how, vectors, 7))) == 7


def test_select_refuses_other_numbers_and_ways():
    with pytest.raises(ValueError, match="6 rows can't be selected from 5"):
        selection.farthest_first(some(5), 6)
    with pytest.raises(ValueError, match="'best'; it can be one of k-means"):
        selection.select("best", some(5), 2)


@given(st.integers(0, 10**6))
def test_farthest_first_is_within_twice_the_best(seed):
    """Gonzalez's bound, with the best of all selections as the reference."""
    vectors = some(9, 2, seed)
    largest = selection.coverage(vectors, selection.farthest_first(vectors, 3, seed))[1]
    every = combinations(range(9), 3)
    best = min(selection.coverage(vectors, list(pick))[1] for pick in every)
    assert largest <= 2 * best + 1e-3


def test_k_means_finds_separate_groups():
    centers = np.eye(4, dtype=np.float32)
    vectors = np.repeat(centers, 25, axis=0) + 0.01 * some(100, 4)
    hits = [set(np.array(selection.k_means(vectors, 4, s)) // 25) for s in range(20)]
    mean, largest = selection.coverage(vectors, selection.k_means(vectors, 40))
    assert max(map(len, hits)) == 4 and mean < largest < 0.1


def test_coverage_is_the_distance_to_the_nearest():
    vectors = np.array([[2, 0], [0, 3], [0, 1], [-1, 0]], dtype=np.float32)
    mean, largest = selection.coverage(vectors, [0, 1])
    assert mean == pytest.approx(2**0.5 / 4, abs=1e-3)
    assert largest == pytest.approx(2**0.5, abs=1e-3)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_semantic_duplicates_agree_with_a_loop(block, monkeypatch):
    monkeypatch.setattr(selection, "BLOCK", block)
    vectors = some(60)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected, kept = [], []
    for i, one in enumerate(unit):
        near = [j for j in kept if unit[j] @ one >= 0.9]
        expected.append(near[0] if near else i)
        kept += [] if near else [i]
    assert selection.semantic_duplicates(vectors, 0.9) == expected
    assert 5 < len(kept) < 50


def test_static_vectors_say_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        selection.static_vectors(["a"], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(ModuleNotFoundError, match="pip install model2vec"):
        selection.static_vectors(["a"], tmp_path)
