"""CPU seconds of alternatives, interleaved in one process, as ratios paired within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from polyloom.core.seeding import python_random
from polyloom.metrics.statistics import bootstrap_interval


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median of paired ratios with its 95 % bootstrap interval."""

    value: float
    low: float | None
    high: float | None


def interleaved_seconds(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, on_round: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Time each alternative once per round, in an order drawn anew; one more round before warms up.

    Args:
        alternatives: name to the work.
        rounds: timed rounds.
        on_round: called with 1 after each.

    Returns:
        CPU seconds by name, one per round.
    """
    order, names = python_random(0, "interleave"), list(alternatives)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            start = time.process_time()
            alternatives[name]()
            if index:
                seconds[name].append(time.process_time() - start)
        if on_round:
            on_round(1)
    return seconds


def speed_over(baseline: list[float], own: list[float]) -> Ratio:
    """Return the baseline's seconds over one's own, paired: above 1 is faster."""
    ratios = [a / b for a, b in zip(baseline, own, strict=True)]
    if len(ratios) < 3:
        return Ratio(median(ratios), None, None)
    interval = bootstrap_interval(ratios, method="percentile", num_resamples=2000)
    return Ratio(median(ratios), interval.low, interval.high)
