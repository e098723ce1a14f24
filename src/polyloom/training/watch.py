"""The watch over a long run: spikes of loss or gradient norm, found by rule before they reach the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW_STEPS = 64
FIRST_STEPS = 16
LOSS_MADS = 6.0
NORM_FACTOR = 4.0
# A flat stretch has no spread: below this share of the median, a rise is noise.
LEAST_SPREAD = 0.01


@dataclass(frozen=True)
class Spike:
    """What was too large at a step: its value and the limit that it passed."""

    what: str
    value: float
    limit: float


@dataclass
class Watch:
    """The last steps' losses and norms, which a checkpoint keeps, and the rule.

    A spike is a loss over median + 6 MAD of the last 64 steps (the MAD at least 1 % of the median), a gradient norm
    over 4 medians, or a value that is not finite. The first 16 steps, in which both change fast, set no limit.
    """

    losses: list[float]
    norms: list[float]

    def look(self, loss: float, norm: float) -> Spike | None:
        """Judge a step; one that is no spike joins the last steps.

        Args:
            loss: mean loss in nats.
            norm: global gradient norm before clipping.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "gradient norm" if math.isfinite(loss) else "loss"
            return Spike(what, norm if math.isfinite(loss) else loss, math.inf)
        limits = (("loss", loss, loss_limit(self.losses)), ("gradient norm", norm, norm_limit(self.norms)))
        for what, value, limit in limits:
            if value > limit:
                return Spike(what, value, limit)
        self.take(loss, norm)
        return None

    def take(self, loss: float, norm: float) -> None:
        """Let a step join the last steps: a spike that was only noted too, so that a lasting rise is one no longer."""
        for values, value in ((self.losses, loss), (self.norms, norm)):
            values.append(value)
            del values[:-WINDOW_STEPS]


def loss_limit(losses: Sequence[float]) -> float:
    """Return median + 6 MAD, or infinity while there are too few steps."""
    if len(losses) < FIRST_STEPS:
        return math.inf
    middle = median(losses)
    spread = median(abs(loss - middle) for loss in losses)
    return middle + LOSS_MADS * max(spread, LEAST_SPREAD * abs(middle))


def norm_limit(norms: Sequence[float]) -> float:
    """Return 4 medians, or infinity while there are too few steps."""
    return NORM_FACTOR * median(norms) if len(norms) >= FIRST_STEPS else math.inf
