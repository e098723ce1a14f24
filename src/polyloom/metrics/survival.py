"""Times to an event with censoring: a run that never reached the target counts as "longer than the budget"."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyloom.metrics.distributions import chi_square_survival

Floats = NDArray[np.float64]


def _check(times: ArrayLike, observed: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    t, o = np.asarray(times, dtype=float), np.asarray(observed, dtype=bool)
    if t.ndim != 1 or t.shape != o.shape or t.size == 0 or not np.isfinite(t).all():
        raise ValueError("needs finite times and as many observed flags, at least one of each")
    return t, o


def kaplan_meier(times: ArrayLike, observed: ArrayLike) -> tuple[Floats, Floats]:
    """Estimate the survival function S(t) = P(T > t).

    Args:
        times: [n] time of the event, or of censoring.
        observed: [n] true where the event happened, false where the time is only a lower bound.

    Returns:
        The distinct event times, ascending, and S just after each.

    Source: Kaplan and Meier (1958).
    """
    t, o = _check(times, observed)
    events = np.unique(t[o])
    at_risk = (t[None, :] >= events[:, None]).sum(1)
    happened = ((t[None, :] == events[:, None]) & o[None, :]).sum(1)
    return events, np.cumprod(1.0 - happened / at_risk)


def median_survival(times: ArrayLike, observed: ArrayLike) -> float | None:
    """Return the first time at which the Kaplan-Meier curve is at most 1/2; None when it never is."""
    events, survival = kaplan_meier(times, observed)
    # A hair of tolerance: a product of fractions such as 3/4 * 2/3 may lie just above 1/2.
    reached = survival <= 0.5 + 1e-12
    return float(events[reached][0]) if reached.any() else None


def log_rank(times_a: ArrayLike, observed_a: ArrayLike, times_b: ArrayLike, observed_b: ArrayLike) -> float:
    """Return the two-sided p-value of the log-rank test that two groups share one survival function.

    Args:
        times_a: [n] times of the first group.
        observed_a: [n] true where the event happened.
        times_b: [m] times of the second group.
        observed_b: [m] true where the event happened.

    Returns:
        p; 1 when no event carries information (none happened, or all fell on one time).

    Source: Mantel (1966); ties by the hypergeometric variance.
    """
    a, seen_a = _check(times_a, observed_a)
    b, seen_b = _check(times_b, observed_b)
    difference = variance = 0.0
    for time in np.unique(np.concatenate([a[seen_a], b[seen_b]])):
        risk_a, risk_b = int((a >= time).sum()), int((b >= time).sum())
        events_a = int(((a == time) & seen_a).sum())
        events = events_a + int(((b == time) & seen_b).sum())
        risk = risk_a + risk_b
        difference += events_a - events * risk_a / risk
        if risk > 1:
            variance += events * (risk_a / risk) * (risk_b / risk) * (risk - events) / (risk - 1)
    return chi_square_survival(difference**2 / variance) if variance > 0 and math.isfinite(variance) else 1.0
