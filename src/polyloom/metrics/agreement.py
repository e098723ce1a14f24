"""Agreement between judges and people: kappa, AUROC, F1, alpha, Brier score, credit, and rates corrected for errors.

Verdicts and labels are booleans; None is an undecided verdict, which no measure here counts as false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.statistics import Interval

Verdict = bool | None


@dataclass(frozen=True)
class Confusion:
    """Counts of a binary judge against labels."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def total(self) -> int:
        """All items."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative


def confusion(labels: ArrayLike, verdicts: ArrayLike) -> Confusion:
    """Count a judge's verdicts against labels, [n] booleans each, at least one."""
    y, v = _booleans(labels), _booleans(verdicts)
    if y.shape != v.shape:
        raise ValueError(f"{y.size} labels and {v.size} verdicts")
    return Confusion(int((y & v).sum()), int((~y & v).sum()), int((y & ~v).sum()), int((~y & ~v).sum()))


def _booleans(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise ValueError("needs at least one value, each 0 or 1")
    return array.astype(bool)


def _ratio(numerator: float, denominator: float, otherwise: float = 0.0) -> float:
    return numerator / denominator if denominator else otherwise


def accuracy(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return the share of equal items."""
    c = confusion(labels, verdicts)
    return (c.true_positive + c.true_negative) / c.total


def precision(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return TP / (TP + FP); 0 without a positive verdict."""
    c = confusion(labels, verdicts)
    return _ratio(c.true_positive, c.true_positive + c.false_positive)


def recall(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return TP / (TP + FN), the true positive rate; 0 without a positive label."""
    c = confusion(labels, verdicts)
    return _ratio(c.true_positive, c.true_positive + c.false_negative)


def false_positive_rate(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return FP / (FP + TN); 0 without a negative label."""
    c = confusion(labels, verdicts)
    return _ratio(c.false_positive, c.false_positive + c.true_negative)


def f1(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return 2 TP / (2 TP + FP + FN); 0 where nothing is positive."""
    c = confusion(labels, verdicts)
    return _ratio(2 * c.true_positive, 2 * c.true_positive + c.false_positive + c.false_negative)


def cohen_kappa(labels: ArrayLike, verdicts: ArrayLike) -> float:
    """Return Cohen's kappa (1960) of two raters; NaN where chance agreement is complete."""
    c = confusion(labels, verdicts)
    n = c.total
    observed = (c.true_positive + c.true_negative) / n
    yes = (c.true_positive + c.false_negative) * (c.true_positive + c.false_positive)
    no = (c.true_negative + c.false_positive) * (c.true_negative + c.false_negative)
    expected = (yes + no) / (n * n)
    return _ratio(observed - expected, 1 - expected, math.nan)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Return P(score+ > score-) + P(tie) / 2; None where the labels have one class."""
    y, s = _booleans(labels), np.asarray(scores, dtype=float)
    if y.shape != s.shape:
        raise ValueError(f"{y.size} labels and {s.size} scores")
    positive, negative = s[y], np.sort(s[~y])
    if positive.size == 0 or negative.size == 0:
        return None
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).sum() / 2 / (positive.size * negative.size))


def true_positive_rate_at(labels: ArrayLike, scores: ArrayLike, max_false_positive_rate: float) -> float | None:
    """Return the highest true positive rate at a false positive rate within the bound; None with one class."""
    y, s = _booleans(labels), np.asarray(scores, dtype=float)
    if y.all() or not y.any():
        return None
    negative = np.sort(s[~y])[::-1]
    allowed = math.floor(max_false_positive_rate * negative.size + 1e-9)
    threshold = negative[allowed] if allowed < negative.size else -math.inf
    return float((s[y] > threshold).mean())


def brier_score(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean squared distance of probabilities from labels (Brier, 1950)."""
    return float(((np.asarray(probabilities, dtype=float) - _booleans(labels)) ** 2).mean())


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the threshold t that maximises TPR - FPR of `score > t`; halfway between two scores, the lowest of equals.

    Raises:
        ValueError: the labels have one class.
    """
    y, s = _booleans(labels), np.asarray(scores, dtype=float)
    if y.all() or not y.any():
        raise ValueError("labels of one class fit no threshold")
    values = np.unique(s)
    cuts = np.concatenate([[values[0] - 1.0], (values[1:] + values[:-1]) / 2])
    gains = [float((s[y] > cut).mean() - (s[~y] > cut).mean()) for cut in cuts]
    return float(cuts[int(np.argmax(gains))])


def krippendorff_alpha(ratings: Sequence[Sequence[Verdict]]) -> float:
    """Return Krippendorff's alpha for nominal data with missing ratings.

    Args:
        ratings: one list an item, one entry a rater; None where a rater gave nothing.

    Returns:
        1 - observed / expected disagreement; NaN where fewer than two values can be paired or all are equal.
    """
    counts = [(sum(r is True for r in row), sum(r is False for r in row)) for row in ratings]
    paired = [(yes, no) for yes, no in counts if yes + no > 1]
    total_yes, total_no = sum(yes for yes, _ in paired), sum(no for _, no in paired)
    n = total_yes + total_no
    if n < 2 or not total_yes or not total_no:
        return math.nan
    observed = sum(2 * yes * no / (yes + no - 1) for yes, no in paired) / n
    expected = 2 * total_yes * total_no / (n * (n - 1))
    return 1 - observed / expected


def aggregate(verdicts: Sequence[Verdict], rule: str) -> Verdict:
    """Combine the verdicts of an ensemble on one item.

    Args:
        verdicts: of the members; None is dropped.
        rule: `majority` more than half true, `approval` any true, `veto` all true.

    Returns:
        None where fewer than two members (or the only one) voted: undecided, never false.
    """
    votes = [verdict for verdict in verdicts if verdict is not None]
    if len(votes) < min(2, len(verdicts)) or not votes:
        return None
    share = sum(votes) / len(votes)
    return {"majority": share > 0.5, "approval": share > 0, "veto": share == 1}[rule]


def log_odds_weights(accuracies: Sequence[float], num_items: int) -> list[float]:
    """Return log(a / (1 - a)) of each judge, accuracies smoothed by one right and one wrong item."""
    smoothed = [(a * num_items + 1) / (num_items + 2) for a in accuracies]
    return [math.log(a / (1 - a)) for a in smoothed]


def weighted_vote(verdicts: Sequence[Verdict], weights: Sequence[float]) -> Verdict:
    """Return whether the weights of true outweigh those of false; None where they are equal or nobody voted."""
    total = sum(w if v else -w for v, w in zip(verdicts, weights, strict=True) if v is not None)
    return None if total == 0 else total > 0


def shapley_values(members: Mapping[str, Sequence[Verdict]], labels: Sequence[bool]) -> dict[str, float]:
    """Share the ensemble's agreement with the labels among its members (Shapley, 1953).

    The value of a coalition is the accuracy of its majority; a tie, or no vote, takes the labels' more frequent class,
    and so does the empty coalition. Exact, for up to ten members.

    Args:
        members: verdicts of each member.
        labels: of the items.
    """
    names = list(members)
    if len(names) > 10:
        raise ValueError("exact shares need at most 10 members")
    y = np.asarray(labels, dtype=bool)
    prior = bool(y.mean() >= 0.5)
    signs = {name: np.array([0 if v is None else 1 if v else -1 for v in members[name]]) for name in names}

    def value(coalition: tuple[str, ...]) -> float:
        votes = np.sum([signs[name] for name in coalition], axis=0) if coalition else np.zeros(len(y))
        return float((np.where(votes == 0, prior, votes > 0) == y).mean())

    values = {group: value(group) for size in range(len(names) + 1) for group in combinations(names, size)}
    shares = dict.fromkeys(names, 0.0)
    for group, worth in values.items():
        weight = (
            math.factorial(len(group)) * math.factorial(len(names) - len(group) - 1) if len(group) < len(names) else 0
        )
        for name in names:
            if name not in group:
                joined = tuple(one for one in names if one in group or one == name)
                shares[name] += weight / math.factorial(len(names)) * (values[joined] - worth)
    return shares


def agreement_interval(
    labels: ArrayLike,
    verdicts: ArrayLike,
    measure: Callable[[ArrayLike, ArrayLike], float | None],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Return a measure with its percentile bootstrap interval over items; None where the measure has no value.

    Draws without a value (one class alone) are left out.
    """
    y, v = np.asarray(labels), np.asarray(verdicts)
    value = measure(y, v)
    if value is None or math.isnan(value):
        return None
    rng = numpy_generator(seed, "agreement")
    found = [measure(y[i], v[i]) for i in rng.integers(0, len(y), (num_resamples, len(y)))]
    kept = [x for x in found if x is not None and not math.isnan(x)]
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def corrected_rate(
    verdicts: ArrayLike, labels: ArrayLike, labelled_verdicts: ArrayLike, *, num_resamples: int = 4000, seed: int = 0
) -> Interval | None:
    """Return the share of true items behind a judge's verdicts, its errors taken out: (observed - FPR) / (TPR - FPR).

    Args:
        verdicts: [n] of the judge on the items that are asked about.
        labels: [k] human labels of other items, of both classes.
        labelled_verdicts: [k] the judge's on those.
        num_resamples: draws; items and labelled ones (each class apart) are drawn together.
        seed: of the draws.

    Returns:
        The rate within [0, 1] and its 95 % interval; None where the judge is no better than chance on the labels.

    Each resampled share is drawn with half an item added to either side, so that a judge without an error among few
    labels is not taken for one that makes none.

    Source: Rogan and Gladen (1978).
    """
    observed, y, v = _booleans(verdicts), _booleans(labels), _booleans(labelled_verdicts)
    if y.all() or not y.any():
        return None
    tpr, fpr = float(v[y].mean()), float(v[~y].mean())
    if tpr <= fpr:
        return None
    rng = numpy_generator(seed, "corrected rate")

    def draw(hits: int, total: int) -> NDArray[np.float64]:
        return np.asarray(rng.beta(hits + 0.5, total - hits + 0.5, num_resamples))

    o = draw(int(observed.sum()), observed.size)
    t, f = draw(int(v[y].sum()), int(y.sum())), draw(int(v[~y].sum()), int((~y).sum()))
    usable = t > f
    rates = np.clip((o[usable] - f[usable]) / (t[usable] - f[usable]), 0, 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    value = min(1.0, max(0.0, (float(observed.mean()) - fpr) / (tpr - fpr)))
    return Interval(value, min(float(low), value), max(float(high), value))


def mcnemar_p(a: ArrayLike, b: ArrayLike) -> float:
    """Return McNemar's exact two-sided p-value for two paired series of booleans (McNemar, 1947)."""
    x, y = _booleans(a), _booleans(b)
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
