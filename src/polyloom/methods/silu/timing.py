"""Time as a ratio: alternatives interleaved in one process, paired within a round, in CPU seconds (CUDA: events)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb
from statistics import median

import torch

from polyloom.core.seeding import python_random


@dataclass(frozen=True)
class Ratio:
    """A median of paired ratios with its 95 % interval, and the median time itself in seconds."""

    value: float
    low: float
    high: float
    seconds: float


def interleaved_ratios(
    alternatives: Mapping[str, Callable[[], object]], baseline: str, rounds: int, device: str = "cpu"
) -> dict[str, Ratio]:
    """Time alternatives against one of them.

    Every round runs each alternative once, in an order drawn anew, so that drift of the machine falls on all alike.

    Args:
        alternatives: name to the work to time.
        baseline: the name that the others are divided by, within each round.
        rounds: timed rounds; one more before them warms up.
        device: "cpu" counts the process's CPU seconds on torch's present threads, "cuda" the device's own clock.

    Returns:
        Name to ratio; the baseline's is 1.
    """
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    order = python_random(0, "interleave")
    names = list(alternatives)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            taken = clock(alternatives[name])
            if index:
                seconds[name].append(taken)
    return {name: _ratio(seconds[name], seconds[baseline]) for name in alternatives}


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _cuda_seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


def _ratio(times: list[float], baseline: list[float]) -> Ratio:
    ratios = sorted(a / b for a, b in zip(times, baseline, strict=True))
    rank = median_rank(len(ratios))
    return Ratio(median(ratios), ratios[rank], ratios[len(ratios) - 1 - rank], median(times))


def median_rank(num_values: int) -> int:
    """Return the 0-based rank k whose order statistics k and n - 1 - k enclose the median with 95 % confidence.

    Exact for any continuous distribution: 2 P(Binomial(n, 1/2) <= k - 1) <= 5 %. With fewer than 6 values the whole
    range (k = 0) holds the median with less.
    """
    below, rank = 0, 0
    while 2 * (below + comb(num_values, rank)) <= 0.05 * 2**num_values:
        below += comb(num_values, rank)
        rank += 1
    return max(rank - 1, 0) if rank else 0
