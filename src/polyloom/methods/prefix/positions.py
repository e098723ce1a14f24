"""Averages of decisions, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median

from polyloom.methods.prefix.method import AGREEMENT_KS, agreement


def position_means(rows: Sequence[Sequence[Mapping[str, float]]], num_positions: int) -> list[dict[str, float]]:
    """Average decisions over samples, position by position.

    Args:
        rows: as `decision_space` returns them.
        num_positions: positions to report; one that no answer reaches is left out.

    Returns:
        For each position the number of samples, agreement@K, median rank, shares of unshifted (rank 0), marginal (1 to
        2), shifted (3 and more) and silent-majority (1 to 19) decisions, and the means of all divergences.
    """
    found = []
    for position in range(num_positions):
        here = [row[position] for row in rows if len(row) > position]
        if not here:
            break
        ranks = [one["rank"] for one in here]
        values = {name: mean(one[name] for one in here) for name in here[0]}
        values |= {f"agreement_at_{k}": agreement(ranks, k) for k in AGREEMENT_KS}
        values |= {
            "num_samples": float(len(here)),
            "median_rank": float(median(ranks)),
            "unshifted": mean(float(rank == 0) for rank in ranks),
            "marginal": mean(float(1 <= rank <= 2) for rank in ranks),
            "shifted": mean(float(rank >= 3) for rank in ranks),
            "silent_majority": mean(float(1 <= rank < 20) for rank in ranks),
        }
        found.append(values)
    return found
