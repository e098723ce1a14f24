"""Dictionaries from static word vectors of two languages that lie in one space, such as the aligned ones of fastText.

Source: Conneau et al. (2018), arXiv 1710.04087, cross-domain similarity local scaling (CSLS).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.word_vectors import Matrix, read_word_vectors

NUM_NEIGHBOURS = 10
BLOCK = 1000


class Vectors(NamedTuple):
    """Words, the most frequent first, and their vectors of length 1 [words, d]."""

    words: tuple[str, ...]
    matrix: Matrix


def read_vectors(path: Path, most: int) -> Vectors:
    """Read the first `most` words of a file and their vectors, scaled to length 1.

    Raises:
        UserError: as `read_word_vectors`.
    """
    found = read_word_vectors(path, most=most)
    return Vectors(found.words, found.matrix / np.maximum(np.linalg.norm(found.matrix, axis=1, keepdims=True), 1e-9))


def csls_best(source: Matrix, target: Matrix) -> tuple[NDArray[np.int64], Matrix]:
    """Return for each source word the target word with the highest CSLS(x, y) = 2 cos(x, y) - r(x) - r(y).

    Args:
        source: vectors of length 1 [m, d].
        target: the same [n, d].

    Returns:
        Numbers of target words [m], and their cosines [m]. r is the mean cosine to the 10 nearest of the other side.

    Source:
        arXiv 1710.04087, section 2.3.
    """
    scale = _nearness(target, source)
    best, cosines = [], []
    for start in range(0, len(source), BLOCK):
        similarity = source[start : start + BLOCK] @ target.T
        # r(x) is the same for all targets of a word.
        found = (2 * similarity - scale).argmax(1)
        best.append(found)
        cosines.append(similarity[np.arange(len(found)), found])
    return np.concatenate(best), np.concatenate(cosines)


def _nearness(own: Matrix, other: Matrix) -> Matrix:
    number = min(NUM_NEIGHBOURS, len(other))
    parts = [own[start : start + BLOCK] @ other.T for start in range(0, len(own), BLOCK)]
    return np.concatenate([np.partition(part, -number, 1)[:, -number:].mean(1) for part in parts])


def induce_from_vectors(source: Vectors, target: Vectors, threshold: float, mutual: bool) -> Dictionary:
    """Induce a dictionary from aligned vectors.

    Args:
        source: of the headwords.
        target: of the translations, in the same space.
        threshold: least cosine of a pair.
        mutual: keep a pair only if each word is the other's best.

    Raises:
        UserError: the vectors have different widths.
    """
    if source.matrix.shape[1] != target.matrix.shape[1]:
        what = f"{source.matrix.shape[1]} and {target.matrix.shape[1]} numbers a word are no one space."
        raise UserError(what, where="--target-vectors", hint="Use vectors that were aligned.")
    best, cosines = csls_best(source.matrix, target.matrix)
    back = csls_best(target.matrix, source.matrix)[0] if mutual else None
    entries = {
        word: (Translation(target.words[j], score=round(float(cosine), 6)),)
        for i, (word, j, cosine) in enumerate(zip(source.words, best.tolist(), cosines.tolist(), strict=True))
        if cosine > threshold and (back is None or back[j] == i)
    }
    return Dictionary(entries, "csls", len(source.words))
