"""What a matcher has to beat: the cosine of weighted word counts, and of plain static vectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polyloom.methods.match.data import Pair
from polyloom.methods.match.scorer import words


def tfidf_cosine(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return for each pair the cosine of its word counts times log((1 + n) / (1 + texts with the word)) + 1.

    Args:
        pairs: the pairs; the rarity of words is counted in their own texts.
    """
    bags = [Counter(words(text)) for pair in pairs for text in (pair.first, pair.second)]
    seen = Counter(word for bag in bags for word in bag)
    rarity = {word: math.log((1 + len(bags)) / (1 + count)) + 1 for word, count in seen.items()}
    weighted = [{word: count * rarity[word] for word, count in bag.items()} for bag in bags]
    norms = [math.sqrt(sum(value**2 for value in bag.values())) for bag in weighted]
    return np.asarray(
        [
            sum(value * b.get(word, 0.0) for word, value in a.items()) / max(x * y, 1e-12)
            for a, b, x, y in zip(weighted[::2], weighted[1::2], norms[::2], norms[1::2], strict=True)
        ]
    )
