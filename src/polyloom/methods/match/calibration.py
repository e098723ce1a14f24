"""Chances that mean what they say: one temperature for the logits, chosen on validation pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LOWEST, HIGHEST = 0.05, 20.0
NUM_BINS = 15
NUM_HALVINGS = 40
GOLDEN = (5**0.5 - 1) / 2


def softmax(logits: Floats) -> Floats:
    """Return the class probabilities [pairs, classes] of logits."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def negative_log_likelihood(logits: Floats, wanted: NDArray[np.int64], temperature: float) -> float:
    """Return the mean -log p of the wanted classes under softmax(logits / temperature)."""
    chances = softmax(logits / temperature)[np.arange(len(wanted)), wanted]
    return float(-np.log(np.maximum(chances, 1e-300)).mean())


def fit_temperature(logits: Floats, wanted: NDArray[np.int64]) -> float:
    """Return the temperature with the least negative log likelihood, by golden-section search over its logarithm.

    The order of the classes of a pair is not changed by it, so that accuracy stays what it was.

    Args:
        logits: [pairs, classes] of pairs that the weights were not trained on.
        wanted: class numbers [pairs].

    Source: Guo et al. (2017), temperature scaling; the loss is convex in 1 / temperature.
    """
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(NUM_HALVINGS):
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left, right = (negative_log_likelihood(logits, wanted, float(np.exp(x))) for x in (a, b))
        low, high = (low, b) if left <= right else (a, high)
    return float(np.exp((low + high) / 2))


def calibration_error(chances: Floats, wanted: NDArray[np.int64], num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over bins of equal size.

    Args:
        chances: [pairs, classes].
        wanted: class numbers [pairs].
        num_bins: bins, each with as many pairs as another.
    """
    confidence, right = chances.max(1), chances.argmax(1) == wanted
    gaps = [
        len(part) * abs(float(confidence[part].mean()) - float(right[part].mean()))
        for part in np.array_split(np.argsort(confidence, kind="stable"), num_bins)
        if len(part)
    ]
    return sum(gaps) / len(wanted)


def best_threshold(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the score from which on calling pairs a match gives the best F1 (of equal ones the highest)."""
    x, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    order = np.argsort(-x, kind="stable")
    found = np.cumsum(y[order])
    f1 = 2 * found / (np.arange(1, len(x) + 1) + y.sum())
    # Equal scores stand or fall together.
    ends = np.append(x[order][1:] != x[order][:-1], True)
    return float(x[order][np.argmax(np.where(ends, f1, -1.0))])
