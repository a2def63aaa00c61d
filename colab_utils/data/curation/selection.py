"""Select rows that differ: vectors of texts, and which of them cover the others.

The vectors come from any model: `evaluation.embeddings` takes them from the base model
itself, and `static_vectors` from a small model of word vectors in a local folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.floating]

WAYS = ("k-means", "farthest-first", "random")
ITERATIONS = 20  # of k-means; the centers hardly move after it
BLOCK = 1000  # rows whose similarities are computed at a time


def select(how: str, vectors: Vectors, count: int, seed: int = 0) -> list[int]:
    """Return `count` rows selected by one of `WAYS`.

    Raises ValueError for another way, or if there are fewer than `count` rows.
    """
    import numpy as np

    if how == "k-means":
        return k_means(vectors, count, seed)
    if how == "farthest-first":
        return farthest_first(vectors, count, seed)
    if how != "random":
        raise ValueError(f"how is {how!r}; it can be one of {', '.join(WAYS)}.")
    draw = np.random.default_rng(seed)
    return draw.choice(len(_check(vectors, count)), count, replace=False).tolist()


def farthest_first(vectors: Vectors, count: int, seed: int = 0) -> list[int]:
    """Return `count` rows, each the farthest from those that stand before it.

    The greedy solution of the k-center problem (Gonzalez 1985): the largest distance of
    a row to a selected one is at most twice the smallest possible. The first row is
    drawn at random. Distances are those of vectors of length 1. Raises ValueError if
    there are fewer than `count` rows.
    """
    import numpy as np

    unit = _check(vectors, count)
    chosen = [int(np.random.default_rng(seed).integers(len(unit)))]
    nearest = _distances(unit, unit[chosen[0]])
    nearest[chosen[0]] = -1
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(unit, unit[chosen[-1]]))
        nearest[chosen[-1]] = -1  # equal rows have the distance 0
    return chosen


def k_means(vectors: Vectors, count: int, seed: int = 0) -> list[int]:
    """Return `count` rows: the row nearest to the center of each k-means cluster.

    The centers begin at random rows. A row is selected once: a center without a row of
    its own takes the nearest that is left. Raises ValueError as `farthest_first`.
    """
    import numpy as np

    unit = _check(vectors, count)
    draw = np.random.default_rng(seed)
    centers = unit[draw.choice(len(unit), count, replace=False)]
    for _ in range(ITERATIONS):
        labels = np.concatenate(
            [(part @ centers.T).argmax(1) for part in _blocks(unit)]
        )
        for number in np.unique(labels):
            centers[number] = unit[labels == number].mean(axis=0)
        centers /= np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-12)
    free = np.ones(len(unit), dtype=bool)
    chosen = []
    for center in centers:
        near = int(np.where(free, unit @ center, -np.inf).argmax())
        free[near] = False
        chosen.append(near)
    return chosen


def coverage(vectors: Vectors, chosen: list[int]) -> tuple[float, float]:
    """Return the mean and the largest distance of the rows to the nearest chosen one.

    0 means that each row has the direction of a chosen one, and 2 is the opposite.
    """
    import numpy as np

    unit = _check(vectors, len(chosen))
    picked = unit[chosen].T
    similar = np.concatenate([(part @ picked).max(1) for part in _blocks(unit)])
    nearest = np.sqrt(np.maximum(2 - 2 * similar, 0))
    return float(nearest.mean()), float(nearest.max())


def semantic_duplicates(vectors: Vectors, similarity: float = 0.95) -> list[int]:
    """Return for each row the index of the first kept row that means the same.

    A row gets its own index if no kept row before it has a cosine similarity of
    `similarity` or more. The time is quadratic: use it on at most some 50,000 rows.
    """
    import numpy as np

    unit = _check(vectors, 0)
    first = list(range(len(unit)))
    kept: list[int] = []
    for start in range(0, len(unit), BLOCK):
        part = unit[start : start + BLOCK]
        before = part @ unit[kept].T if kept else np.zeros((len(part), 0))
        within = part @ part.T
        fresh: list[int] = []  # kept rows of this block
        for i in range(len(part)):
            if len(kept) and before[i].max() >= similarity:
                first[start + i] = kept[int((before[i] >= similarity).argmax())]
                continue
            near = [j for j in fresh if within[i, j] >= similarity]
            if near:
                first[start + i] = start + near[0]
            else:
                fresh.append(i)
        kept += [start + i for i in fresh]
    return first


def static_vectors(texts: list[str], folder: Path) -> Vectors:
    """Return the vectors of model2vec for texts, from a model in a local folder.

    Raises ModuleNotFoundError with the command if model2vec is not installed, and
    FileNotFoundError if the folder has no model.
    """
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} has no model.safetensors. Download a model of model2vec into "
            "this folder, such as minishlab/potion-base-8M (30 MB)."
        )
    try:
        from model2vec import StaticModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Semantic duplicates need model2vec. Install it: pip install model2vec"
        ) from error
    vectors: Vectors = StaticModel.from_pretrained(folder).encode(texts)
    return vectors


def _check(vectors: Vectors, count: int) -> Vectors:
    """Return the vectors with length 1; a zero vector stays zero."""
    import numpy as np

    if count > len(vectors):
        raise ValueError(
            f"{count:,} rows can't be selected from {len(vectors):,}: choose fewer."
        )
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def _distances(unit: Vectors, one: Vectors) -> Vectors:
    import numpy as np

    return np.sqrt(np.maximum(2 - 2 * (unit @ one), 0))


def _blocks(unit: Vectors) -> list[Vectors]:
    return [unit[start : start + BLOCK] for start in range(0, len(unit), BLOCK)]
