"""Loss by size: a robust fit of L = a C^b + c, its interval, and when it must not be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator

Floats = NDArray[np.float64]
LOWEST, HIGHEST = -3.0, -0.02
GRID = 300
REFINEMENTS = 4
LEAST_SIZES = 4
NUM_RESAMPLES = 1000
# A prediction without a target is for so many times the largest size; from so many times on none is to be trusted.
TARGET_FACTOR, FAR = 4.0, 10.0


@dataclass(frozen=True)
class PowerLaw:
    """L = a C^b + c with a > 0, c >= 0, b < 0; `rmse` is of the points that were fitted."""

    a: float
    b: float
    c: float
    rmse: float

    def loss(self, size: float) -> float:
        """Return the loss at a size."""
        return float(self.a * size**self.b + self.c)


@dataclass(frozen=True)
class Prediction:
    """The loss at a size with its 5-95 % band, and why it is not to be believed (empty where it is)."""

    size: float
    loss: float
    low: float
    high: float
    doubts: tuple[str, ...]


def fit_power_law(sizes: Sequence[float], losses: Sequence[float], weights: Sequence[float] | None = None) -> PowerLaw:
    """Fit by a grid over b, linear least squares for a and c at each, and refinement around the best.

    Args:
        sizes: C, at least 4 different ones.
        losses: L at each.
        weights: of the squared errors, such as 1 / variance over seeds.

    Raises:
        UserError: fewer than 4 sizes, losses that are all equal, or values that are not finite.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=float) / np.mean(weights)
    if len(set(sizes)) < LEAST_SIZES:
        raise UserError(f"{len(set(sizes))} sizes are too few for three parameters.", hint="Train at least 4 widths.")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all()):
        raise UserError("a size or a loss is no finite number above 0.", hint="Leave diverged runs out.")
    if float(np.ptp(y)) < 1e-9 * float(np.abs(y).max()):
        raise UserError("the losses are all equal: there is no law to fit.", hint="Train wider or longer.")
    scale = float(np.exp(np.log(x).mean()))
    b, step = _best(x / scale, y, w, np.linspace(LOWEST, HIGHEST, GRID)), (HIGHEST - LOWEST) / GRID
    for _ in range(REFINEMENTS):
        grid = np.clip(np.linspace(b - step, b + step, 41), LOWEST, HIGHEST)
        b, step = _best(x / scale, y, w, grid), step / 20
    a, c = _linear(x / scale, y[:, None], w, np.array([b]))
    fitted = a[0, 0] * (x / scale) ** b + c[0, 0]
    rmse = float(np.sqrt(np.average((y - fitted) ** 2, weights=w)))
    return PowerLaw(float(a[0, 0] * scale**-b), float(b), float(c[0, 0]), rmse)


def _linear(x: Floats, y: Floats, w: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """Return a and c [grid, samples] of least squares with a > 0 and c >= 0, for y [points, samples]."""
    powers = x[None, :] ** grid[:, None]
    weight = w / w.sum()
    mean_p, mean_y = powers @ weight, weight @ y
    covariance = (powers * weight) @ y - mean_p[:, None] * mean_y[None, :]
    variance = (powers**2) @ weight - mean_p**2
    a = np.maximum(covariance / np.maximum(variance, 1e-300)[:, None], 1e-12)
    c = mean_y[None, :] - a * mean_p[:, None]
    through_zero = ((powers * weight) @ y) / ((powers**2) @ weight)[:, None]
    a = np.where(c < 0, np.maximum(through_zero, 1e-12), a)
    return a, np.maximum(c, 0.0)


def _errors(x: Floats, y: Floats, w: Floats, grid: Floats) -> tuple[Floats, Floats, Floats]:
    a, c = _linear(x, y, w, grid)
    powers = x[None, :] ** grid[:, None]
    fitted = a[:, None, :] * powers[:, :, None] + c[:, None, :]
    return ((y[None] - fitted) ** 2 * w[None, :, None]).sum(axis=1), a, c


def _best(x: Floats, y: Floats, w: Floats, grid: Floats) -> float:
    errors, _, _ = _errors(x, y[:, None], w, grid)
    return float(grid[int(errors[:, 0].argmin())])


def _predictions(x: Floats, samples: Floats, w: Floats, target: float) -> Floats:
    """Fit each column of samples [points, n] on the grid and return its prediction [n]."""
    grid = np.linspace(LOWEST, HIGHEST, GRID)
    errors, a, c = _errors(x, samples, w, grid)
    chosen = errors.argmin(axis=0)
    columns = np.arange(samples.shape[1])
    return np.asarray(a[chosen, columns] * target ** grid[chosen] + c[chosen, columns])


def predict(
    sizes: Sequence[float],
    losses: Sequence[float],
    target: float,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[PowerLaw, Prediction]:
    """Fit, and predict the loss at a size with an interval.

    The band is the 5-95 % range of a residual bootstrap (1000 draws) and the fits that leave one size out. The law is
    not resolved, whatever its number, where b lies within 0.1 of its bounds (then any curve fits as well), or where
    leaving one size out moves the prediction by more than the range of all losses.

    Args:
        sizes: C.
        losses: L.
        target: the size to predict.
        weights: of the squared errors.
        seed: of the draws.

    Raises:
        UserError: as `fit_power_law`.
    """
    law = fit_power_law(sizes, losses, weights)
    x, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=float) / np.mean(weights)
    scale = float(np.exp(np.log(x).mean()))
    fitted = np.array([law.loss(size) for size in x])
    # Three parameters take up residuals: they are widened to what the points scatter.
    residuals = (y - fitted) * np.sqrt(len(y) / max(1, len(y) - 3))
    draws = numpy_generator(seed, "residuals").choice(residuals, (len(y), NUM_RESAMPLES))
    resampled = _predictions(x / scale, fitted[:, None] + draws, w, target / scale)
    left_out = np.array(
        [
            float(_predictions(np.delete(x, i) / scale, np.delete(y, i)[:, None], np.delete(w, i), target / scale)[0])
            for i in range(len(y))
        ]
    )
    low, high = np.quantile(resampled, [0.05, 0.95])
    loss = law.loss(target)
    doubts = []
    if min(law.b - LOWEST, HIGHEST - law.b) < 0.1:
        doubts.append(f"the exponent {law.b:.2f} is at its bound")
    if np.ptp(left_out) > np.ptp(y):
        doubts.append(
            f"leaving one size out moves the prediction by {np.ptp(left_out):.3f}, more than all losses differ"
        )
    spread = (min(float(low), float(left_out.min()), loss), max(float(high), float(left_out.max()), loss))
    return law, Prediction(target, loss, *spread, tuple(doubts))


@dataclass(frozen=True)
class PublishedSet:
    """Losses that others measured: sizes and losses to fit, and those to predict.

    `size_unit` is what the sizes count; `source` the publication.
    """

    name: str
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    target_sizes: tuple[float, ...]
    target_losses: tuple[float, ...]
    source: str


_MU_SCALING = "arXiv 2304.06875 and its repository: GPT-2, 12 layers, 20k steps; sizes in 2^20 parameters"
_NANOLM = "arXiv 2304.06875 (nanoLM); sizes in 2^20 parameters"
_NANOLM_SIZES = (8.82, 22.36, 40.61, 63.59, 91.28, 123.69, 160.82)
PUBLISHED = (
    PublishedSet(
        "mu-scaling-gpt2",
        (8.53, 21.56, 39.09, 61.12, 87.65, 118.68, 154.21),
        (3.9181, 3.6054, 3.4431, 3.3542, 3.2902, 3.2478, 3.224),
        (194.24, 676.48, 1446.72),
        (3.1797, 3.0854, 3.0425),
        _MU_SCALING,
    ),
    PublishedSet(
        "nanolm-mup-7k", _NANOLM_SIZES, (4.52, 4.25, 4.16, 4.10, 4.04, 4.01, 4.00), (202.67,), (3.98,), _NANOLM
    ),
    PublishedSet(
        "nanolm-standard-7k", _NANOLM_SIZES, (4.73, 4.48, 4.50, 4.42, 4.36, 4.33, 4.29), (202.67,), (4.31,), _NANOLM
    ),
    PublishedSet(
        "nanolm-gpt-20k", _NANOLM_SIZES, (4.45, 4.2, 4.05, 3.94, 3.9, 3.87, 3.85), (202.67,), (3.84,), _NANOLM
    ),
    PublishedSet(
        "nanolm-llama-20k",
        (9.59, 25.47, 47.64, 76.10, 110.85, 151.90, 199.24),
        (4.49, 4.31, 4.24, 4.20, 4.18, 4.17, 4.11),
        (252.86,),
        (4.10,),
        _NANOLM,
    ),
)
