"""Seconds of alternatives, interleaved in one process, as ratios paired within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    alternatives: Mapping[str, Sequence[Callable[[], object]]],
    rounds: int,
    on_round: Callable[[int], None] | None = None,
    *,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Time alternatives piece by piece, each once per round, in an order drawn anew; one more round before warms up.

    A machine that others use is fast and slow by turns. The same piece of all alternatives runs within moments, so
    that they share these turns.

    Args:
        alternatives: name to its pieces of work, as many for each.
        rounds: timed rounds.
        on_round: called with 1 after each.
        clock: what to time by (`models.device.clock`).

    Returns:
        Seconds by name, one sum per round.
    """
    order, names = python_random(0, "interleave"), list(alternatives)
    num_pieces = len(alternatives[names[0]])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        sums = dict.fromkeys(names, 0.0)
        for piece in range(num_pieces):
            order.shuffle(names)
            for name in names:
                start = clock()
                alternatives[name][piece]()
                sums[name] += clock() - start
        if index:
            for name, spent in sums.items():
                seconds[name].append(spent)
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
