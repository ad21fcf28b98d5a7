"""Word and text pairs with human similarity scores, from the test data of gensim (needs the full assets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from examples import assets

FOLDER = "gensim/test/test_data"


class Pairs(NamedTuple):
    """Texts, index pairs int (p, 2) into them, and the human score of each pair, float (p,)."""

    texts: list[str]
    pairs: np.ndarray
    scores: np.ndarray

    def cosines(self, vectors: np.ndarray) -> np.ndarray:
        """The cosine of each pair, (p,), from unit vectors (len(texts), width)."""
        return np.sum(vectors[self.pairs[:, 0]] * vectors[self.pairs[:, 1]], axis=1)


def wordsim353() -> Pairs:
    """353 pairs of words. Finkelstein et al., "Placing Search in Context", 2002."""
    lines = assets.path(FOLDER, "wordsim353.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    words = sorted({word for row in rows for word in row[:2]})
    index = {word: number for number, word in enumerate(words)}
    pairs = np.array([[index[word] for word in row[:2]] for row in rows])
    return Pairs(words, pairs, np.array([float(row[2]) for row in rows]))


def lee() -> Pairs:
    """50 short news texts and all 1225 pairs of them. Lee, Pincombe and Welsh, 2005."""
    texts = assets.path(FOLDER, "lee.cor").read_text(encoding="latin-1").splitlines()
    matrix = np.loadtxt(assets.path(FOLDER, "similarities0-1.txt"))
    rows, columns = np.triu_indices(len(texts), 1)
    return Pairs(texts, np.stack([rows, columns], axis=1), matrix[rows, columns])


def lee_background() -> list[str]:
    """300 more news texts of the same kind without scores, for calibration."""
    return assets.path(FOLDER, "lee_background.cor").read_text(encoding="latin-1").splitlines()


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson's correlation of two series."""
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(np.asarray(x)), _ranks(np.asarray(y)))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
