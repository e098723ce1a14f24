"""Loss by size and steps together: a robust fit of L = a C^b + d t^e + c, its band, and when it is not resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator
from polyloom.methods.pretrain.laws import HIGHEST, LEAST_SIZES, LOWEST

Floats = NDArray[np.float64]
GRID, REFINEMENTS = 36, 5
COARSE_GRID, COARSE_REFINEMENTS = 16, 4
NUM_RESAMPLES = 100
LEAST_STEPS = 4
# A term whose effect over all points is below so many errors of the fit is not seen.
LEAST_EFFECT = 3.0


@dataclass(frozen=True)
class JointLaw:
    """L(C, t) = a C^b + d t^e + c with a, d > 0, c >= 0, b, e < 0; `rmse` is of the points that were fitted."""

    a: float
    b: float
    d: float
    e: float
    c: float
    rmse: float

    def losses(self, size: float, steps: Floats) -> Floats:
        """Return the losses at a size and steps."""
        return np.asarray(self.a * size**self.b + self.d * steps**self.e + self.c)


@dataclass(frozen=True)
class Curve:
    """The losses expected at a size over steps, with their 5-95 % band, and why not to believe them."""

    size: float
    steps: Floats
    loss: Floats
    low: Floats
    high: Floats
    doubts: tuple[str, ...]


def fit_joint(sizes: Floats, steps: Floats, losses: Floats) -> JointLaw:
    """Fit by a grid over b and e, linear least squares for a, d and c at each, and refinement around the best.

    Args:
        sizes: C of each point, at least 4 different ones.
        steps: t of each, at least 4 different ones.
        losses: L of each.

    Raises:
        UserError: too few sizes or steps, equal losses, or values that are not finite and above 0.
    """
    for values, least, what in ((sizes, LEAST_SIZES, "sizes"), (steps, LEAST_STEPS, "steps")):
        if len(np.unique(values)) < least:
            hint = f"Give losses of at least {least} {what}."
            raise UserError(f"{len(np.unique(values))} {what} are too few for a law of both.", hint=hint)
    points = np.stack([sizes, steps, losses])
    if not (np.isfinite(points).all() and (points[:2] > 0).all()):
        raise UserError("a size, step or loss is no finite number above 0.", hint="Leave diverged runs out.")
    if float(np.ptp(losses)) < 1e-9 * float(np.abs(losses).max()):
        raise UserError("the losses are all equal: there is no law to fit.", hint="Train wider or longer.")
    return _fit(sizes, steps, losses, GRID, REFINEMENTS)


def _fit(sizes: Floats, steps: Floats, losses: Floats, grid: int, refinements: int) -> JointLaw:
    size_scale, step_scale = (float(np.exp(np.log(values).mean())) for values in (sizes, steps))
    b_grid = e_grid = np.linspace(LOWEST, HIGHEST, grid)
    for _ in range(refinements):
        b, e, a, d, c, rmse = _best(sizes / size_scale, steps / step_scale, losses, b_grid, e_grid)
        width = 2 * float(b_grid[1] - b_grid[0])
        b_grid, e_grid = (np.clip(np.linspace(v - width, v + width, grid), LOWEST, HIGHEST) for v in (b, e))
    return JointLaw(a * size_scale**-b, b, d * step_scale**-e, e, c, rmse)


def _best(x: Floats, t: Floats, losses: Floats, b_grid: Floats, e_grid: Floats) -> tuple[float, ...]:
    """Return b, e, a, d, c and the error where it is least, of all pairs of exponents that leave a and d above 0."""
    b, e = (values.ravel() for values in np.meshgrid(b_grid, e_grid, indexing="ij"))
    columns = np.stack([x[None] ** b[:, None], t[None] ** e[:, None], np.ones((len(b), len(x)))], axis=-1)
    whole = _solve(columns, losses)
    through_zero = np.concatenate([_solve(columns[..., :2], losses), np.zeros((len(b), 1))], axis=1)
    found = np.where(whole[:, 2:] < 0, through_zero, whole)
    errors = np.sqrt(((np.einsum("gnk,gk->gn", columns, found) - losses) ** 2).mean(axis=1))
    errors[(found[:, :2] <= 0).any(axis=1)] = np.inf
    at = int(errors.argmin())
    if not np.isfinite(errors[at]):
        raise UserError("no size or no step lowers the loss: there is no law to fit.", hint="Train wider or longer.")
    return float(b[at]), float(e[at]), *map(float, found[at]), float(errors[at])


def _solve(columns: Floats, losses: Floats) -> Floats:
    gram = np.einsum("gnk,gnj->gkj", columns, columns) + 1e-12 * np.eye(columns.shape[-1])
    return np.asarray(np.linalg.solve(gram, np.einsum("gnk,n->gk", columns, losses)[..., None])[..., 0])


def predict_curve(
    runs: Sequence[object], sizes: Floats, steps: Floats, losses: Floats, target: float, at: Floats, seed: int = 0
) -> tuple[JointLaw, Curve]:
    """Fit, and predict a size's losses over steps with a band.

    The band joins two bootstraps of 100 draws, one of single residuals and one that turns the sign of whole runs'
    (errors along a run hang together), and the fits that leave one size out. It is not resolved where an exponent lies
    within 0.1 of its bounds, where size or steps change the losses by less than 3 errors of the fit, or where leaving
    one size out moves the last loss by more than the losses of the last step differ.

    Args:
        runs: which run each point is of.
        sizes: C of each point.
        steps: t of each.
        losses: L of each.
        target: the size to predict.
        at: steps to predict, ascending.
        seed: of the draws.

    Raises:
        UserError: as `fit_joint`.
    """
    law = fit_joint(sizes, steps, losses)
    fitted = np.array([float(law.losses(size, np.array([t]))[0]) for size, t in zip(sizes, steps, strict=True)])
    residuals = (losses - fitted) * np.sqrt(len(losses) / max(1, len(losses) - 5))
    names = list(dict.fromkeys(runs))
    member = np.array([names.index(run) for run in runs])
    signs = numpy_generator(seed, "signs").choice([-1.0, 1.0], (NUM_RESAMPLES, len(names)))
    dealt = numpy_generator(seed, "residuals").choice(residuals, (NUM_RESAMPLES, len(residuals)))
    bands = [
        _quantiles([_curve(sizes, steps, fitted + draw, target, at) for draw in draws])
        for draws in ([residuals * sign[member] for sign in signs], dealt)
    ]
    left_out = [
        _curve(sizes[sizes != size], steps[sizes != size], losses[sizes != size], target, at)
        for size in np.unique(sizes)
        if len(np.unique(sizes)) > LEAST_SIZES
    ]
    loss = law.losses(target, at)
    others = np.array([curve for curve in left_out if curve is not None] or [loss])
    doubts = []
    terms = (("size", law.a, law.b, sizes), ("steps", law.d, law.e, steps))
    for name, factor, exponent, values in terms:
        if min(exponent - LOWEST, HIGHEST - exponent) < 0.1:
            doubts.append(f"the exponent of the {name} {exponent:.2f} is at its bound")
        if factor * float(np.ptp(values**exponent)) < LEAST_EFFECT * law.rmse:
            doubts.append(f"the {name} term changes the losses no more than chance does")
    last = losses[steps == steps.max()]
    if float(np.ptp(others[:, -1])) > float(np.ptp(last)):
        moved = float(np.ptp(others[:, -1]))
        doubts.append(f"leaving one size out moves the prediction by {moved:.3f}, more than the last losses differ")
    low = np.min([loss, *others, *(band[0] for band in bands)], axis=0)
    high = np.max([loss, *others, *(band[1] for band in bands)], axis=0)
    return law, Curve(target, at, loss, low, high, tuple(doubts))


def _quantiles(curves: Sequence[Floats | None]) -> Floats:
    return np.asarray(np.quantile([curve for curve in curves if curve is not None], [0.05, 0.95], axis=0))


def _curve(sizes: Floats, steps: Floats, losses: Floats, target: float, at: Floats) -> Floats | None:
    try:
        return _fit(sizes, steps, losses, COARSE_GRID, COARSE_REFINEMENTS).losses(target, at)
    except UserError:
        return None
