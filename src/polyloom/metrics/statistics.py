"""Statistics of the whole project: intervals, paired tests, corrections, equivalence, and the words that follow.

Every function takes plain arrays and needs numpy alone. A difference is always `a - b`, paired by position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.distributions import (
    normal_cdf,
    normal_quantile,
    t_quantile,
    t_survival,
    t_test_power,
)

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Word = Literal["better", "worse", "no difference larger than the margin", "undecided"]
EXACT_SIGN_FLIP_PAIRS = 20


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


def _sample(values: ArrayLike, at_least: int = 1) -> Floats:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size < at_least or not np.isfinite(x).all():
        raise ValueError(f"needs at least {at_least} finite values in one dimension, got shape {x.shape}")
    return x


def _differences(a: ArrayLike, b: ArrayLike, at_least: int = 2) -> Floats:
    x, y = _sample(a, at_least), _sample(b, at_least)
    if x.shape != y.shape:
        raise ValueError(f"paired samples need equal lengths, got {x.size} and {y.size}")
    return x - y


def mean_sd(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n - 1; NaN for one value)."""
    x = _sample(values)
    return float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean with Student's t interval.

    Args:
        values: [n] sample, n >= 2.
        confidence: level of the interval.
    """
    x = _sample(values, 2)
    half = t_quantile(0.5 + confidence / 2, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def _t_statistic(x: Floats, centre: float) -> float:
    error = float(x.std(ddof=1)) / math.sqrt(x.size)
    distance = float(x.mean()) - centre
    if error == 0.0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / error


def t_test(values: ArrayLike, mean: float = 0.0) -> float:
    """Return the two-sided p-value of the one-sample t test that the true mean is `mean`."""
    x = _sample(values, 2)
    return min(1.0, 2.0 * t_survival(abs(_t_statistic(x, mean)), x.size - 1))


def paired_t_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of a - b with its t interval."""
    return t_interval(_differences(a, b), confidence)


def _mean_of_last_axis(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=-1))


def _resample(x: Floats, statistic: Statistic, num_resamples: int, seed: int) -> Floats:
    indices = numpy_generator(seed, "bootstrap").integers(0, x.size, (num_resamples, x.size))
    return np.asarray(statistic(x[indices]), dtype=float)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = _mean_of_last_axis,
    *,
    method: Literal["bca", "percentile"] = "bca",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return a statistic with its bootstrap interval.

    Args:
        values: [n] sample, n >= 2.
        statistic: maps [..., n] to [...]; the mean by default.
        method: `bca` corrects bias and skewness; `percentile` takes the plain quantiles.
        confidence: level of the interval.
        num_resamples: draws with replacement.
        seed: of the draws.

    Source: Efron (1987) for BCa, acceleration by the jackknife.
    """
    x = _sample(values, 2)
    value = float(statistic(x))
    draws = _resample(x, statistic, num_resamples, seed)
    tail = (1.0 - confidence) / 2
    low, high = tail, 1.0 - tail
    if method == "bca":
        # Ties count half, so that a discrete statistic has no bias by construction.
        below = (float((draws < value).mean()) + float((draws <= value).mean())) / 2
        bias = normal_quantile(below)
        rows = np.broadcast_to(x, (x.size, x.size))[~np.eye(x.size, dtype=bool)]
        left_out = np.asarray(statistic(rows.reshape(x.size, x.size - 1)))
        influence = left_out.mean() - left_out
        spread = float((influence**2).sum())
        if not math.isfinite(bias) or spread == 0.0:
            return Interval(value, float(draws.min()), float(draws.max()))
        acceleration = float((influence**3).sum()) / (6.0 * spread**1.5)

        def adjust(z: float) -> float:
            return normal_cdf(bias + (bias + z) / (1.0 - acceleration * (bias + z)))

        low, high = adjust(normal_quantile(low)), adjust(normal_quantile(high))
    return Interval(value, float(np.quantile(draws, low)), float(np.quantile(draws, high)))


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Return a ratio of sums with its percentile bootstrap interval over pairs; no interval (a point) for one pair.

    Args:
        numerators: [n] one a unit, for example a document's bits; differences of two models for a paired interval.
        denominators: [n] of the same units, for example bytes.
        confidence: level of the interval.
        num_resamples: draws with replacement.
        seed: of the draws.
    """
    x, y = _sample(numerators), _sample(denominators)
    if x.shape != y.shape:
        raise ValueError(f"a ratio needs equal lengths, got {x.size} and {y.size}")
    value = math.fsum(x) / math.fsum(y)
    if x.size < 2:
        return Interval(value, value, value)
    draws = numpy_generator(seed, "bootstrap").integers(0, x.size, (num_resamples, x.size))
    ratios = x[draws].sum(axis=1) / y[draws].sum(axis=1)
    tail = (1.0 - confidence) / 2
    return Interval(value, float(np.quantile(ratios, tail)), float(np.quantile(ratios, 1.0 - tail)))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of a - b with its BCa interval; pairs are drawn together."""
    differences = _differences(a, b)
    return bootstrap_interval(differences, confidence=confidence, num_resamples=num_resamples, seed=seed)


def _all_signed_sums(x: Floats) -> Floats:
    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def sign_flip_p(differences: ArrayLike, *, num_draws: int = 20_000, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip permutation test that the differences are symmetric about 0.

    Args:
        differences: [n] paired differences. Up to 20, all 2^n sign patterns are counted: the p-value is exact.
        num_draws: sign patterns drawn for larger n; the observed one counts among them.
        seed: of the draws.

    Returns:
        p, at least 2 / 2^n.
    """
    x = _sample(differences)
    observed = abs(float(x.sum()))
    # Sums that are equal in exact arithmetic may differ in the last bits.
    threshold = observed - 1e-12 * float(np.abs(x).sum())
    if x.size <= EXACT_SIGN_FLIP_PAIRS:
        return float((np.abs(_all_signed_sums(x)) >= threshold).mean())
    signs = numpy_generator(seed, "sign flip").integers(0, 2, (num_draws, x.size), dtype=np.int8)
    extreme = int((np.abs((2.0 * signs - 1.0) @ x) >= threshold).sum())
    return (extreme + 1) / (num_draws + 1)


def holm(p_values: ArrayLike) -> Floats:
    """Return Holm's adjusted p-values, which hold the family-wise error rate (Holm, 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Return adjusted p-values that hold the false discovery rate (Benjamini and Hochberg, 1995)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[::-1]
    steps = np.minimum.accumulate(p[order] * (p.size / np.arange(p.size, 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def tost(differences: ArrayLike, margin: float) -> float:
    """Return the p-value of the equivalence test: small means that the true mean lies within +-margin.

    Args:
        differences: [n] paired differences, n >= 2.
        margin: largest difference that counts as none, in the differences' unit.

    Source: Schuirmann (1987), two one-sided t tests.
    """
    x = _sample(differences, 2)
    df = x.size - 1
    return max(t_survival(_t_statistic(x, -margin), df), 1.0 - t_survival(_t_statistic(x, margin), df))


def effect_size_dz(differences: ArrayLike) -> float:
    """Return the mean over the standard deviation of paired differences (Cohen's d_z); 0 when all are 0."""
    x = _sample(differences, 2)
    return _t_statistic(x, 0.0) / math.sqrt(x.size)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return a share with Wilson's score interval (Wilson, 1927)."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = normal_quantile(0.5 + confidence / 2)
    share, scale = successes / trials, 1.0 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    return Interval(share, low, 1.0 if successes == trials else centre + half)


def power(difference: float, sd: float, num_pairs: int, alpha: float = 0.05) -> float:
    """Return the chance that the two-sided paired t test finds a true difference.

    Args:
        difference: the true mean difference.
        sd: standard deviation of the paired differences.
        num_pairs: pairs (seeds), at least 2.
        alpha: level of the test.
    """
    return t_test_power(abs(difference) / sd * math.sqrt(num_pairs), num_pairs - 1, alpha)


def minimum_detectable_difference(sd: float, num_pairs: int, *, alpha: float = 0.05, target: float = 0.8) -> float:
    """Return the smallest true difference that `num_pairs` pairs find with power `target`."""
    return sd * _detectable_effect(num_pairs, alpha, target) if sd else 0.0


@lru_cache(maxsize=1024)
def _detectable_effect(num_pairs: int, alpha: float, target: float) -> float:
    """Return the detectable difference in units of its standard deviation, by bisection."""
    low, high = 0.0, 1.0
    while power(high, 1.0, num_pairs, alpha) < target:
        high *= 2.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if power(middle, 1.0, num_pairs, alpha) < target else (low, middle)
    return high


def _ranks(x: Floats) -> Floats:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse], dtype=float)


def pearson(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Return Pearson's correlation and its two-sided p-value (n >= 3); NaN when one side is constant."""
    a, b = _sample(x, 3), _sample(y, 3)
    if a.shape != b.shape:
        raise ValueError(f"correlation needs equal lengths, got {a.size} and {b.size}")
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    if scale == 0.0:
        return math.nan, math.nan
    r = max(-1.0, min(1.0, float((a * b).sum()) / scale))
    df = a.size - 2
    t = math.inf if abs(r) == 1.0 else abs(r) * math.sqrt(df / ((1 - r) * (1 + r)))
    return r, min(1.0, 2.0 * t_survival(t, df))


def spearman(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Return Spearman's rank correlation (ties share their mean rank) and its two-sided p-value by t."""
    return pearson(_ranks(_sample(x, 3)), _ranks(_sample(y, 3)))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their counts.

    Args:
        confidence: [n] probability of the predicted class.
        correct: [n] true where the prediction was right.
        num_bins: bins (0, 1/k], (1/k, 2/k], ...

    Source: Guo et al. (arXiv 1706.04599), eq. 3.
    """
    p, hit = _sample(confidence), np.asarray(correct, dtype=float)
    bins = np.clip(np.ceil(p * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=p - hit, minlength=num_bins)
    return float(np.abs(gaps).sum() / p.size)


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of `a` with `b`, and the word that follows from it."""

    num_pairs: int
    mean_a: float
    mean_b: float
    difference: Interval
    bootstrap: Interval
    sd: float
    p: float
    corrected_p: float
    equivalence_p: float
    effect_size: float
    margin: float
    minimum_detectable: float
    higher_is_better: bool
    alpha: float
    word: Word


def _word(difference: float, p: float, equivalence_p: float, higher_is_better: bool, alpha: float) -> Word:
    if equivalence_p <= alpha:
        return "no difference larger than the margin"
    if p <= alpha:
        return "better" if (difference > 0) == higher_is_better else "worse"
    return "undecided"


def compare_paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    margin: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two paired samples and say what follows.

    The word comes from these rules alone, in this order: `no difference larger than the margin` when the equivalence
    test passes at `alpha`; `better` or `worse` (of a against b) when the corrected p is at most `alpha`; else
    `undecided`. One comparison needs no correction; pass several through `correct_family`.

    Args:
        a: [n] values, one per seed, n >= 2.
        b: [n] values of the same seeds.
        margin: largest difference that counts as none, in the values' unit.
        higher_is_better: false for losses and times.
        alpha: level of the tests; the intervals have level 1 - alpha.
        num_resamples: bootstrap draws.
        seed: of bootstrap and permutation draws.
    """
    differences = _differences(a, b)
    interval = t_interval(differences, 1 - alpha)
    p, equivalence_p = sign_flip_p(differences, seed=seed), tost(differences, margin)
    sd = float(differences.std(ddof=1))
    return Comparison(
        num_pairs=differences.size,
        mean_a=mean_sd(a)[0],
        mean_b=mean_sd(b)[0],
        difference=interval,
        bootstrap=bootstrap_interval(differences, confidence=1 - alpha, num_resamples=num_resamples, seed=seed),
        sd=sd,
        p=p,
        corrected_p=p,
        equivalence_p=equivalence_p,
        effect_size=effect_size_dz(differences),
        margin=margin,
        minimum_detectable=minimum_detectable_difference(sd, differences.size, alpha=alpha),
        higher_is_better=higher_is_better,
        alpha=alpha,
        word=_word(interval.value, p, equivalence_p, higher_is_better, alpha),
    )


def correct_family(comparisons: Sequence[Comparison], other_p: Sequence[float] = ()) -> list[Comparison]:
    """Correct the p-values of all comparisons of a report together (Holm) and choose their words again.

    Args:
        comparisons: every comparison of the report.
        other_p: p-values of further tests of the same report, which count in the family.
    """
    adjusted = holm([comparison.p for comparison in comparisons] + list(other_p))
    return [
        replace(
            item,
            corrected_p=float(p),
            word=_word(item.difference.value, float(p), item.equivalence_p, item.higher_is_better, item.alpha),
        )
        for item, p in zip(comparisons, adjusted, strict=False)
    ]
