"""How good a matcher is, and whether two differ: scores, and intervals over seeds and over test items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.statistics import paired_t_interval, spearman, t_test

Floats = NDArray[np.float64]
NUM_RESAMPLES = 10_000
NUM_RANK_RESAMPLES = 500


def confusion(wanted: Sequence[str], given: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return counts [wanted, given]."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for a, b in zip(wanted, given, strict=True):
        counts[classes.index(a), classes.index(b)] += 1
    return counts


def f1_scores(counts: NDArray[np.int64]) -> Floats:
    """Return the F1 of each class of a confusion matrix; 0 for one that was neither wanted nor given."""
    right = np.diag(counts).astype(float)
    total = counts.sum(0) + counts.sum(1)
    return np.asarray(2 * right / np.maximum(total, 1))


def threshold_for(scores: ArrayLike, positive: ArrayLike, precision: float) -> float | None:
    """Return the least score from which on the share of positives is at least `precision`; None where there is none."""
    x, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    order = np.argsort(-x, kind="stable")
    reached = np.cumsum(y[order]) / np.arange(1, len(x) + 1) >= precision
    # Equal scores stand or fall together.
    ends = np.append(x[order][1:] != x[order][:-1], True)
    good = np.flatnonzero(reached & ends)
    return float(x[order][good[-1]]) if len(good) else None


@dataclass(frozen=True)
class Difference:
    """A difference of two blocks on one base: over seeds and over test items.

    It is distinguishable only where both intervals leave 0 out: the one says that another training would show it, the
    other that another test set would.
    """

    value: float
    items_low: float
    items_high: float
    seeds_low: float
    seeds_high: float
    p: float
    num_positive: int
    num_seeds: int

    @property
    def word(self) -> str:
        """`better`, `worse` or `not distinguishable`."""
        if min(self.items_low, self.seeds_low) > 0:
            return "better"
        return "worse" if max(self.items_high, self.seeds_high) < 0 else "not distinguishable"


def compare_runs(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Difference:
    """Compare per-item scores of two blocks, paired by seed and item.

    Args:
        a: [seeds, items] 1 where a run was right (or any score of an item), at least 2 seeds.
        b: the same of the other block.
        seed: of the resamples.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    per_seed = x.mean(1) - y.mean(1)
    # Averages of few seeds take few values: drawing their counts is drawing the items.
    values, counts = np.unique(np.round(x.mean(0) - y.mean(0), 9), return_counts=True)
    rng = numpy_generator(seed, "items")
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), NUM_RESAMPLES) @ values / counts.sum()
    return _difference(per_seed, float(per_seed.mean()), drawn)


def compare_correlations(a: ArrayLike, b: ArrayLike, wanted: ArrayLike, *, seed: int = 0) -> Difference:
    """Compare Spearman's correlation of two blocks' predictions [seeds, items] with the wanted scores [items]."""
    x, y, z = (np.asarray(v, dtype=float) for v in (a, b, wanted))

    def gap(rows: NDArray[np.int64]) -> Floats:
        return np.asarray([_rho(p[rows], z[rows]) - _rho(q[rows], z[rows]) for p, q in zip(x, y, strict=True)])

    per_seed = gap(np.arange(len(z)))
    rng = numpy_generator(seed, "items")
    drawn = np.asarray([gap(rng.integers(0, len(z), len(z))).mean() for _ in range(NUM_RANK_RESAMPLES)])
    return _difference(per_seed, float(per_seed.mean()), drawn)


def _rho(x: Floats, y: Floats) -> float:
    value = spearman(x, y)[0]
    return 0.0 if math.isnan(value) else value


def _difference(per_seed: Floats, value: float, drawn: Floats) -> Difference:
    low, high = np.quantile(drawn, (0.025, 0.975))
    interval = paired_t_interval(per_seed, np.zeros_like(per_seed))
    p = t_test(per_seed)
    return Difference(
        value, float(low), float(high), interval.low, interval.high, p, int((per_seed > 0).sum()), len(per_seed)
    )


def planted_null(difficulty: ArrayLike, num_seeds: int, *, num_trials: int = 100, seed: int = 0) -> int:
    """Count how often two equal blocks are called not distinguishable.

    Both blocks draw from the same chances: an item's, and a seed's luck that moves all items of a run (2 points of
    standard deviation in the logit's scale of 0.1), as retraining does.

    Args:
        difficulty: [items] chance that a run is right.
        num_seeds: runs of each block.
        num_trials: comparisons.
        seed: of the draws.
    """
    chance = np.clip(np.asarray(difficulty, dtype=float), 0.02, 0.98)
    logits = np.log(chance / (1 - chance))
    kept = 0
    for trial in range(num_trials):
        rng = numpy_generator(seed, "null", trial)
        runs = []
        for _ in range(2):
            luck = rng.normal(0, 0.1, (num_seeds, 1))
            p = 1 / (1 + np.exp(-(logits[None] + luck)))
            runs.append(rng.random(p.shape) < p)
        per_seed = runs[0].mean(1) - runs[1].mean(1)
        over_seeds = paired_t_interval(per_seed, np.zeros_like(per_seed))
        # Items are drawn only where the seeds alone do not settle it, which is where most of the time would go.
        kept += over_seeds.low <= 0 <= over_seeds.high or compare_runs(*runs, seed=trial).word == "not distinguishable"
    return kept
