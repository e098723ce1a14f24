"""The selection: from scores of instruction pairs to a ranked list of tasks, and the measures that judge one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Aggregation = Literal["mean", "max", "mean_of_max", "soft", "vote"]
AGGREGATIONS: tuple[Aggregation, ...] = ("mean", "max", "mean_of_max", "soft", "vote")
VOTE_DEPTH = 10
SOFT_TEMPERATURE = 0.05
RANK_CONSTANT = 60
MAX_COSINES = 8_000_000
Array = np.ndarray


def cosine_pairs(target: Float[Array, "m d"], pool: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Return s_ij, the cosine of every target instruction with every pool instruction; a zero vector has cosine 0.

    Source: spec 2.2.
    """
    return np.asarray(unit_rows(target) @ unit_rows(pool).T)


def max_sim(
    target: Float[Array, "a d"],
    target_starts: Int[Array, "m"],
    pool: Float[Array, "b d"],
    pool_starts: Int[Array, "n"],
    target_weights: Float[Array, "a"],
    pool_weights: Float[Array, "b"],
) -> Float[Array, "m n"]:
    """Return s_ij by late interaction: every token takes its nearest token of the other instruction.

    s_ij = (sum_t w_t max_u cos(t, u) / sum_t w_t + sum_u w_u max_t cos(t, u) / sum_u w_u) / 2, t over the tokens of
    target instruction i and u over those of pool instruction j. Both directions are taken, since a long instruction
    holds something near to every token of a short one.

    Args:
        target: states of the tokens of m target instructions, one behind the other.
        target_starts: where each of them begins; none is empty.
        pool: the same of n pool instructions.
        pool_starts: where each of them begins.
        target_weights: of the target's tokens.
        pool_weights: of the pool's tokens.

    Source: Khattab, Zaharia (2020), ColBERT, eq. 3, for the first sum; Zhang et al. (2020), BERTScore, eq. 2, for both.
    """
    a, b = unit_rows(target), unit_rows(pool)
    ends = [*pool_starts[1:], len(b)]
    found = np.zeros((len(target_starts), len(pool_starts)), dtype=np.float32)
    asked = np.add.reduceat(target_weights, target_starts)[:, None]
    first = 0
    while first < len(pool_starts):
        # A block of pool instructions whose cosines fit the memory; one at least.
        last = first + 1
        while last < len(pool_starts) and (ends[last] - pool_starts[first]) * len(a) <= MAX_COSINES:
            last += 1
        span = slice(int(pool_starts[first]), int(ends[last - 1]))
        starts = pool_starts[first:last] - pool_starts[first]
        cosines = a @ b[span].T
        forth = np.maximum.reduceat(cosines, starts, axis=1) * target_weights[:, None]
        back = np.maximum.reduceat(cosines, target_starts, axis=0) * pool_weights[span]
        answered = np.add.reduceat(pool_weights[span], starts)
        found[:, first:last] = np.add.reduceat(forth, target_starts, axis=0) / asked / 2
        found[:, first:last] += np.add.reduceat(back, starts, axis=1) / answered / 2
        first = last
    return found


def unit_rows(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Return rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms == 0, 1, norms))


def aggregate(
    pairs: Float[Array, "m n"], owners: Int[Array, "n"], num_tasks: int, how: Aggregation = "mean"
) -> Float[Array, "tasks"]:
    """Turn scores of instruction pairs into one score a task.

    Args:
        pairs: s_ij of m target instructions and n pool instructions.
        owners: the task of every pool instruction; every task owns one at least.
        num_tasks: tasks.
        how: `mean` over all pairs of a task; `max`; `mean_of_max`: the mean over target instructions of the best match;
            `soft`: tau log mean exp(s / tau), between mean and max; `vote`: every target instruction gives its 10
            nearest pool instructions the weights 10^(3 (10 - rank)), which orders tasks by their best ranks.

    Source: spec 2.2 (S(T)); `mean` is what the reference sorts by.
    """
    counts = np.bincount(owners, minlength=num_tasks)
    if how == "vote":
        return _votes(pairs, owners, num_tasks)
    scores = pairs.astype(np.float64)
    if how == "mean":
        return np.asarray(np.bincount(owners, weights=scores.mean(axis=0), minlength=num_tasks) / counts)
    if how == "soft":
        top = scores.max()
        powers = np.exp((scores - top) / SOFT_TEMPERATURE).mean(axis=0)
        means = np.bincount(owners, weights=powers, minlength=num_tasks) / counts
        return np.asarray(top + SOFT_TEMPERATURE * np.log(np.maximum(means, 1e-300)))
    best = np.full((len(scores), num_tasks), -np.inf)
    for row, values in zip(best, scores, strict=True):
        np.maximum.at(row, owners, values)
    return np.asarray(best.max(axis=0) if how == "max" else best.mean(axis=0))


def _votes(pairs: Array, owners: Array, num_tasks: int) -> Array:
    votes = np.zeros(num_tasks)
    for values in pairs:
        nearest = np.lexsort((np.arange(len(values)), -values))[:VOTE_DEPTH]
        for rank, place in enumerate(nearest):
            votes[owners[place]] += 10.0 ** (3 * (VOTE_DEPTH - rank))
    return votes


def order_by(scores: Float[Array, "tasks"]) -> Int[Array, "tasks"]:
    """Return the tasks from best to worst; ties keep the order of the tasks (their ids)."""
    return np.lexsort((np.arange(len(scores)), -np.round(scores, 9)))


def ranks_of(scores: Float[Array, "tasks"]) -> Float[Array, "tasks"]:
    """Return each task's rank from 1."""
    ranks = np.empty(len(scores))
    ranks[order_by(scores)] = np.arange(1, len(scores) + 1)
    return ranks


def fuse(scores: Sequence[Float[Array, "tasks"]]) -> Float[Array, "tasks"]:
    """Fuse scorers by their ranks: sum of 1 / (60 + rank).

    Source: Cormack, Clarke, Buettcher (2009), reciprocal rank fusion.
    """
    return np.asarray(sum(1 / (RANK_CONSTANT + ranks_of(one)) for one in scores))


def mix_prior(
    scores: Float[Array, "tasks"], prior: Float[Array, "tasks"], weight: float = 0.5
) -> Float[Array, "tasks"]:
    """Mix similarity with a prior, both as z-scores: (1 - w) z(S) + w z(prior); tasks without a prior (NaN) get 0.

    Source: spec 7, measured on transfers between 22 tasks.
    """
    known = np.where(np.isnan(prior), 0.0, z_scores(prior))
    return np.asarray((1 - weight) * z_scores(scores) + weight * known)


def z_scores(x: Float[Array, "n"]) -> Float[Array, "n"]:
    """Return (x - mean) / sd over the known values; zeros where all are equal."""
    spread = float(np.nanstd(x)) if np.isfinite(x).any() else 0.0
    return np.asarray((x - np.nanmean(x)) / spread if spread > 0 else np.zeros(len(x)))


def popularity(
    gains: Mapping[str, Mapping[str, float]],
    target: str,
    tasks: Sequence[str],
    nearness: Mapping[str, float] | None = None,
) -> Float[Array, "tasks"]:
    """Return the mean gain that each source gave to targets other than this one; NaN where none was measured.

    Args:
        gains: target -> source -> gain.
        target: left out, so that the prior never sees what it is judged by.
        tasks: sources in the wanted order.
        nearness: weights of the other targets, each as near to this one as its instructions are: they are then the
            pivots of TaskShop (arXiv 2305.16256), and a gain counts by how like the target its own target is.

    Returns:
        A value for each task.
    """
    means = []
    for task in tasks:
        seen = {name: row[task] for name, row in gains.items() if name not in (target, task) and task in row}
        weights = [1.0 if nearness is None else max(0.0, nearness.get(name, 0.0)) for name in seen]
        means.append(float(np.average(list(seen.values()), weights=weights)) if sum(weights) > 0 else math.nan)
    return np.array(means)


def diversify(
    scores: Float[Array, "tasks"], similarity: Float[Array, "tasks tasks"], k: int, balance: float = 0.7
) -> list[int]:
    """Choose k tasks by maximal marginal relevance: balance * score - (1 - balance) * nearness to those chosen.

    Source: Carbonell, Goldstein (1998).
    """
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores - low) / (high - low) if high > low else np.zeros(len(scores))
    chosen: list[int] = []
    nearest = np.zeros(len(scores))
    while len(chosen) < min(k, len(scores)):
        value = balance * relevance - (1 - balance) * nearest
        value[chosen] = -np.inf
        chosen.append(int(order_by(np.where(np.isfinite(value), value, -1e9))[0]))
        nearest = np.maximum(nearest, similarity[chosen[-1]])
    return chosen


def fisher_similarity(a: Float[Array, "d"], b: Float[Array, "d"]) -> float:
    """Return how alike the Fisher information of two tasks is: cos(a / (a + b), b / (a + b)); 1 for equal ones.

    The quotients keep the few weights with much information from deciding alone; weights that neither task reads are
    left out.

    Source: Achille et al. (2019), Task2Vec, section 4: one less its symmetric distance.
    """
    total = a + b
    read = total > 0
    if not read.any():
        return 0.0
    return float(cosine_pairs((a[read] / total[read])[None], (b[read] / total[read])[None])[0, 0])


def principal_plane(vectors: Float[Array, "n d"]) -> tuple[Float[Array, "n 2"], float]:
    """Project vectors on the plane in which they spread most.

    Args:
        vectors: n vectors; each axis of the plane is turned so that its largest entry by size is above zero.

    Returns:
        The coordinates about their mean, and the share of the variance that lies in the plane.

    Source: Pearson (1901), principal components.
    """
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    plane = np.zeros((vectors.shape[1], 2))
    plane[:, : min(2, len(values))] = axes[:, ::-1][:, :2]
    plane *= np.where(plane[np.abs(plane).argmax(axis=0), [0, 1]] < 0, -1, 1)
    total = float(values.sum())
    return np.asarray(centred @ plane), float(values[-2:].sum()) / total if total > 0 else 1.0


# ---- measures


def overlap(a: Sequence[str], b: Sequence[str]) -> float:
    """Return |A and B| / max(|A|, |B|) of two selections."""
    return len(set(a) & set(b)) / max(len(set(a)), len(set(b)), 1)


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Return |A and B| / |A or B|; 1 for two empty sets."""
    union = set(a) | set(b)
    return len(set(a) & set(b)) / len(union) if union else 1.0


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], p: float = 0.9) -> float:
    """Return the truncated, extrapolated rank-biased overlap of two lists; 1 for equal ones.

    Source: Webber, Moffat, Zobel (2010), eq. 30 at the shorter list's depth.
    """
    depth = min(len(a), len(b))
    if depth == 0:
        return 0.0
    shares = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, depth + 1)]
    total = sum(share * p**d for d, share in enumerate(shares, 1))
    return shares[-1] * p**depth + (1 - p) / p * total


def ndcg(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return NDCG over a full list: relevance n - gold rank, gain 2^rel - 1, discount log2(position + 2) from 0.

    Args:
        predicted: all n names, best first.
        gold: the same names in their true order.
    """
    n = len(gold)
    # Gains are divided by 2^n, so that long lists do not overflow; the quotient is the same.
    relevance = {name: n - place for place, name in enumerate(gold)}
    gain = {name: 2.0 ** (value - n) - 2.0**-n for name, value in relevance.items()}
    discounts = [math.log2(place + 2) for place in range(n)]
    found = sum(gain[name] / d for name, d in zip(predicted, discounts, strict=True))
    ideal = sum(gain[name] / d for name, d in zip(gold, discounts, strict=True))
    return found / ideal


def regret(gains: Mapping[str, float], chosen: Sequence[str]) -> float:
    """Return how much of the best k sources' mean gain the chosen k miss; 0 where that mean is not positive."""
    best = float(np.mean(sorted(gains.values(), reverse=True)[: len(chosen)]))
    return (best - float(np.mean([gains[name] for name in chosen]))) / best if best > 0 else 0.0


def kendall_tau(a: Float[Array, "n"], b: Float[Array, "n"]) -> float:
    """Return Kendall's tau-a of two score vectors: (concordant - discordant) / pairs."""
    n = len(a)
    if n < 2:
        return math.nan
    total = 0.0
    for i in range(n - 1):
        total += float((np.sign(a[i] - a[i + 1 :]) * np.sign(b[i] - b[i + 1 :])).sum())
    return total / (n * (n - 1) / 2)


def category_precision(
    order: Sequence[int], categories: Sequence[str], category: str, k: int, left_out: frozenset[int] = frozenset()
) -> float:
    """Return the share of the first k tasks, those left out aside, that have the query's category."""
    kept = [i for i in order if i not in left_out][:k]
    return sum(categories[i] == category for i in kept) / max(1, len(kept))
