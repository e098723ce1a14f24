"""Distribution functions that the tests and intervals need: normal, Student t, noncentral t, chi-square with 1 df."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_STANDARD_NORMAL = NormalDist()
_SMALLEST = 1e-300


def normal_cdf(x: float) -> float:
    """Return P(Z <= x) for Z ~ N(0, 1)."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def normal_quantile(p: float) -> float:
    """Return the x with P(Z <= x) = p; infinite at 0 and 1."""
    if p <= 0.0 or p >= 1.0:
        return -math.inf if p <= 0.0 else math.inf
    return _STANDARD_NORMAL.inv_cdf(p)


def chi_square_survival(x: float) -> float:
    """Return P(X > x) for X chi-square with one degree of freedom."""
    return math.erfc(math.sqrt(max(x, 0.0) / 2.0))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function by Lentz's method."""

    def away_from_zero(value: float) -> float:
        return value if abs(value) > _SMALLEST else _SMALLEST

    c, d = 1.0, 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / away_from_zero(1.0 + step * d)
            c = away_from_zero(1.0 + step / c)
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return fraction


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b).

    Args:
        x: in [0, 1].
        a: positive.
        b: positive.

    Source: NIST Digital Library of Mathematical Functions, 8.17.22.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast on this side of the mean; the other side is its mirror image.
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(x, a, b) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(1.0 - x, b, a) / b


def t_survival(t: float, df: float) -> float:
    """Return P(T > t) for Student's t with `df` degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    tail = 0.5 * incomplete_beta(df / (df + t * t), df / 2.0, 0.5)
    return tail if t >= 0 else 1.0 - tail


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Return the t with P(T <= t) = p for Student's t with `df` degrees of freedom; infinite at 0 and 1."""
    if p <= 0.0 or p >= 1.0:
        return -math.inf if p <= 0.0 else math.inf
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    low, high = 0.0, 1.0
    while t_survival(high, df) > 1.0 - p:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_survival(middle, df) > 1.0 - p else (low, middle)
    return 0.5 * (low + high)


@lru_cache(maxsize=64)
def _scaled_chi_grid(df: int, num_points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return points and probability weights of sqrt(chi-square(df) / df), by Gauss-Legendre quadrature."""
    upper = math.sqrt((df + 12.0 * math.sqrt(2.0 * df) + 80.0) / df)
    nodes, weights = np.polynomial.legendre.leggauss(num_points)
    s = 0.5 * upper * (nodes + 1.0)
    log_density = (
        math.log(2.0) + 0.5 * df * math.log(df / 2.0) - math.lgamma(df / 2.0) + (df - 1) * np.log(s) - 0.5 * df * s**2
    )
    return s, 0.5 * upper * weights * np.exp(log_density)


def t_test_power(noncentrality: float, df: int, alpha: float = 0.05) -> float:
    """Return the power of the two-sided t test.

    Args:
        noncentrality: true mean times sqrt(n) over the true standard deviation.
        df: degrees of freedom, n - 1.
        alpha: level of the test.
    """
    critical = t_quantile(1.0 - alpha / 2.0, df)
    s, probability = _scaled_chi_grid(df)
    accepted = [normal_cdf(critical * x - noncentrality) - normal_cdf(-critical * x - noncentrality) for x in s]
    return float(1.0 - np.dot(probability, accepted))


def binomial_band(trials: int, probability: float, confidence: float = 0.95) -> tuple[int, int]:
    """Return the narrowest equal-tailed counts [low, high] that hold a binomial count with at least `confidence`.

    Args:
        trials: n.
        probability: of a success in one trial.
        confidence: level of the band.
    """
    if probability in (0.0, 1.0):
        return (0, 0) if probability == 0.0 else (trials, trials)
    counts = np.arange(trials + 1)
    factorials = np.array([math.lgamma(k + 1) for k in range(trials + 1)])
    log_choose = factorials[-1] - factorials - factorials[::-1]
    masses = np.exp(log_choose + counts * math.log(probability) + (trials - counts) * math.log1p(-probability))
    below = np.cumsum(masses)
    tail = (1.0 - confidence) / 2
    return int(np.searchsorted(below, tail, side="right")), int(np.searchsorted(below, 1.0 - tail))
