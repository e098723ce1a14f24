"""Loss by mixture: a fit of L_i(w) = c_i + exp(t_i . w) over runs, the weights that it proposes, and its doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator

Floats = NDArray[np.float64]
GRID, REFINEMENTS = 48, 3
# Fits that are made by the thousand, to see how far the others can be believed.
COARSE_GRID, COARSE_REFINEMENTS = 16, 1
NUM_RESAMPLES = 200
NUM_SHUFFLES = 99
SHUFFLED_LIMIT = 0.01
RIDGE = 1e-9


@dataclass(frozen=True)
class MixtureLaw:
    """L_i(w) = c_i + exp(t_i . w) of each domain i, w the shares, which add up to 1.

    `c` [domains], `t` [domains, shares]. The constant factor k_i of arXiv 2403.16952 is inside t_i, as the shares add
    up to 1.
    """

    c: Floats
    t: Floats

    def losses(self, shares: Floats) -> Floats:
        """Return the losses [domains] at shares [shares], or [n, domains] at [n, shares]."""
        return np.asarray(self.c + np.exp(shares @ self.t.T))


@dataclass(frozen=True)
class Proposal:
    """Shares proposed, the fall of the weighted loss that is predicted, and why it is not to be believed.

    `gain` is against the reference, with a 5-95 % band; `left_out_error` the root mean square error of the weighted
    loss of a run that was left out of the fit, over the one of the other runs' mean (1: the law knows nothing);
    `p` the share of shuffled tables, whose losses are dealt to other runs, in which it is as small.
    """

    law: MixtureLaw
    shares: Floats
    gain: float
    low: float
    high: float
    left_out_error: float
    p: float
    doubts: tuple[str, ...]


def fit_law(shares: Floats, losses: Floats) -> MixtureLaw:
    """Fit each domain by a grid over c_i and weighted least squares of log(L - c) at each.

    Args:
        shares: [runs, shares], rows add up to 1.
        losses: [runs, domains].

    Raises:
        UserError: too few different runs, or values that are not finite and above 0.
    """
    num_runs, num_shares = len(np.unique(shares.round(9), axis=0)), shares.shape[1]
    if num_runs < num_shares + 2:
        what = f"{num_runs} different mixtures are too few for {num_shares} shares."
        raise UserError(what, hint=f"Train at least {num_shares + 2}.")
    if not (np.isfinite(losses).all() and (losses > 0).all() and (shares >= 0).all()):
        raise UserError("a share or a loss is no finite number above 0.", hint="Leave diverged runs out.")
    return _fit(shares, losses, GRID, REFINEMENTS)


def _fit(shares: Floats, losses: Floats, grid: int, refinements: int) -> MixtureLaw:
    found = [_fit_domain(shares, losses[:, i], grid, refinements) for i in range(losses.shape[1])]
    return MixtureLaw(np.array([c for c, _ in found]), np.array([t for _, t in found]))


def _fit_domain(shares: Floats, losses: Floats, grid: int, refinements: int) -> tuple[float, Floats]:
    lowest = float(losses.min())
    low, high = 0.0, 0.999
    best: tuple[float, float, Floats] = (np.inf, 0.0, np.zeros(shares.shape[1]))
    for _ in range(refinements):
        factors = np.linspace(low, high, grid)
        c = factors[:, None] * lowest
        # The error of log(L - c) is that of L over L - c.
        weight = (losses - c) ** 2
        gram = np.einsum("gn,nk,nj->gkj", weight, shares, shares) + RIDGE * np.eye(shares.shape[1])
        t = np.linalg.solve(gram, ((weight * np.log(losses - c)) @ shares)[..., None])[..., 0]
        errors = ((c + np.exp(t @ shares.T) - losses) ** 2).sum(axis=1)
        chosen = int(errors.argmin())
        if errors[chosen] < best[0]:
            best = (float(errors[chosen]), float(factors[chosen]), t[chosen])
        step = (high - low) / (grid - 1)
        low, high = max(0.0, best[1] - step), min(0.999, best[1] + step)
    return best[1] * lowest, best[2]


def best_shares(law: MixtureLaw, importance: Floats, low: Floats, high: Floats) -> Floats:
    """Return the shares with the least sum of importance_i L_i inside limits; the sum is convex, so there is one.

    Args:
        law: the fit.
        importance: of each domain's loss.
        low: least share of each.
        high: largest share of each.
    """
    start = low + (high - low) * (1 - low.sum()) / max(1e-12, (high - low).sum())
    done = minimize(
        lambda w: float(importance @ law.losses(w)),
        start,
        jac=lambda w: (importance * np.exp(law.t @ w)) @ law.t,
        bounds=list(zip(low, high, strict=True)),
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)}],
        method="SLSQP",
    )
    shares = np.clip(np.asarray(done.x, dtype=float), low, high)
    return np.asarray(shares / shares.sum())


def propose(
    shares: Floats, losses: Floats, reference: Floats, importance: Sequence[float] | None = None, seed: int = 0
) -> Proposal:
    """Fit, and propose shares inside the range of the runs', with an interval and with doubts.

    The band of the gain is the 5-95 % range of a residual bootstrap (200 draws of runs' residuals) and of the fits that
    leave one run out. It is not resolved where a left-out run is predicted no better than by the others' mean, or than
    in one of 99 shuffled tables, or where the band holds 0.

    Args:
        shares: [runs, shares].
        losses: [runs, domains].
        reference: shares that the gain is against.
        importance: of each domain's loss; all alike by default.
        seed: of the draws.

    Raises:
        UserError: as `fit_law`.
    """
    v = np.ones(losses.shape[1]) if importance is None else np.asarray(importance, dtype=float)
    v = v / v.sum()
    law = fit_law(shares, losses)
    proposed = best_shares(law, v, shares.min(axis=0), shares.max(axis=0))

    def gain(other: MixtureLaw) -> float:
        return float(v @ (other.losses(reference) - other.losses(proposed)))

    fitted = law.losses(shares)
    spare = max(1, len(shares) - shares.shape[1] - 1)
    residuals = (losses - fitted) * np.sqrt(len(shares) / spare)
    draws = numpy_generator(seed, "mixture residuals").integers(0, len(shares), (NUM_RESAMPLES, len(shares)))
    floor = 1e-6 * losses.min()
    gains = [gain(_fit(shares, np.maximum(fitted + residuals[draw], floor), GRID, REFINEMENTS)) for draw in draws]
    others = _left_out_laws(shares, losses)
    gains += [gain(other) for other in others.values()]
    low, high = np.quantile(gains, [0.05, 0.95])
    error = _left_out_error(shares, losses, v, others)
    generator = numpy_generator(seed, "mixture shuffles")
    tables = [losses[generator.permutation(len(losses))] for _ in range(NUM_SHUFFLES)]
    shuffled = [_left_out_error(shares, table, v, _left_out_laws(shares, table)) for table in tables]
    p = (1 + sum(value <= error for value in shuffled)) / (1 + NUM_SHUFFLES)
    doubts = []
    if not error < 1:
        doubts.append("a run that is left out is predicted no better than by the mean of the others")
    elif p > SHUFFLED_LIMIT:
        doubts.append(f"{p:.0%} of shuffled tables are predicted as well")
    if low <= 0:
        doubts.append(f"the gain may be none (5-95 %: {low:.4f} to {high:.4f})")
    return Proposal(law, proposed, gain(law), float(low), float(high), error, p, tuple(doubts))


def _left_out_laws(shares: Floats, losses: Floats) -> dict[int, MixtureLaw]:
    """Return the law without each run, where the others are enough."""
    found = {}
    for run in range(len(shares)):
        rest = np.delete(np.arange(len(shares)), run)
        if len(np.unique(shares[rest].round(9), axis=0)) >= shares.shape[1] + 2:
            found[run] = _fit(shares[rest], losses[rest], COARSE_GRID, COARSE_REFINEMENTS)
    return found


def _left_out_error(shares: Floats, losses: Floats, v: Floats, laws: dict[int, MixtureLaw]) -> float:
    """Return the error of the weighted loss of runs that were left out, over that of the other runs' mean."""
    if not laws:
        return float("inf")
    errors = [float(v @ (law.losses(shares[run]) - losses[run])) for run, law in laws.items()]
    naive = [float(v @ (np.delete(losses, run, axis=0).mean(axis=0) - losses[run])) for run in laws]
    return float(np.sqrt(np.mean(np.square(errors)) / max(1e-300, float(np.mean(np.square(naive))))))
