"""What training sees beyond the files: misspelled words, and batches in which the negatives are near."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_LETTERS = 3


def misspell(text: str, share: float, rng: random.Random) -> str:
    """Return a text in which a share of the words (those of three letters or more) has one slip of the keyboard.

    Args:
        text: words between blanks.
        share: chance of each word.
        rng: the random stream.
    """
    words = text.split(" ")
    return " ".join(_slip(word, rng) if _is_long(word) and rng.random() < share else word for word in words)


def _is_long(word: str) -> bool:
    return sum(letter.isalpha() for letter in word) >= LEAST_LETTERS


def _slip(word: str, rng: random.Random) -> str:
    """Swap two letters, leave one out, write one twice, or write another of the word's letters in its place."""
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(word) + word[at + 1 :]


def hard_batches(
    vectors: NDArray[np.float32], batch_size: int, share: float, rng: np.random.Generator
) -> list[list[int]]:
    """Cut pairs into batches in which a share of the pairs are neighbours: in-batch negatives that are hard.

    Args:
        vectors: of the second texts [pairs, size], of length 1.
        batch_size: pairs of a batch.
        share: of each batch that are its first pair's nearest ones; the rest is drawn.
        rng: the random stream.

    Returns:
        Batches; every pair is in one of them.
    """
    free = np.ones(len(vectors), dtype=bool)
    order = rng.permutation(len(vectors))
    num_near = round(share * batch_size)
    cut = []
    for first in order:
        if not free[first]:
            continue
        near = np.argsort(-(vectors @ vectors[first]), kind="stable")
        chosen = near[free[near]][:num_near].tolist() if num_near else []
        chosen = [int(first), *(i for i in chosen if i != first)][: max(1, num_near)]
        free[chosen] = False
        drawn = [int(i) for i in order if free[i]][: batch_size - len(chosen)]
        free[drawn] = False
        cut.append(chosen + drawn)
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2] += cut.pop()
    return [cut[i] for i in rng.permutation(len(cut))]


def misspell_all(texts: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """Return all texts with their slips."""
    return [misspell(text, share, rng) for text in texts]
