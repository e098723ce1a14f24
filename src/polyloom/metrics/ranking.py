"""Ranking metrics: average precision, reciprocal rank, nDCG and recall of ranked relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def ranked_relevance(scores: ArrayLike, relevance: ArrayLike) -> list[float]:
    """Return the relevance in the order of falling scores; equal scores keep their order.

    Args:
        scores: [n] of one query's candidates.
        relevance: [n] gains; 0 is not relevant.
    """
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    return [float(value) for value in np.asarray(relevance, dtype=float)[order]]


def average_precision(relevance: Sequence[float]) -> float:
    """Return AP = (1/R) sum_k P@k rel_k of a ranked list; NaN without relevant candidates."""
    hits, total = 0, 0.0
    for rank, value in enumerate(relevance, start=1):
        if value > 0:
            hits += 1
            total += hits / rank
    return total / hits if hits else math.nan


def reciprocal_rank(relevance: Sequence[float]) -> float:
    """Return 1 / rank of the first relevant candidate; 0 when none is."""
    return next((1 / rank for rank, value in enumerate(relevance, start=1) if value > 0), 0.0)


def dcg(relevance: Sequence[float], k: int) -> float:
    """Return the discounted cumulative gain: sum over the first k of (2^rel - 1) / log2(rank + 1)."""
    return sum((2**value - 1) / math.log2(rank + 1) for rank, value in enumerate(relevance[:k], start=1))


def ndcg(relevance: Sequence[float], k: int) -> float:
    """Return DCG@k over that of the best order; NaN without relevant candidates."""
    best = dcg(sorted(relevance, reverse=True), k)
    return dcg(relevance, k) / best if best > 0 else math.nan


def recall_at(relevance: Sequence[float], k: int) -> float:
    """Return the share of the relevant candidates among the first k; NaN without any."""
    total = sum(value > 0 for value in relevance)
    return sum(value > 0 for value in relevance[:k]) / total if total else math.nan


def mean_over_queries(values: Sequence[float]) -> float:
    """Return the mean of a metric over the queries that have it (MAP, MRR); NaN without any."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
