"""The benchmark's metrics as pure functions of a trajectory. Percentages are 0..100.

Source: GovSim (arXiv 2404.16698), section 3 of the paper; `over_usage_diluted` is what its tables hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyloom.methods.commons.engine import Resource, Trajectory, optimum


def totals(trajectory: Trajectory) -> list[int]:
    """Return R_i, what each agent took in all months; agents who came later have fewer months."""
    num_agents = max((len(month) for month in trajectory.obtained), default=0)
    return [sum(month[i] for month in trajectory.obtained if i < len(month)) for i in range(num_agents)]


def efficiency(total: float | int, resource: Resource) -> float:
    """Return u = 100 (1 - max(0, T f(0) - sum R) / (T f(0))), f(0) the threshold of the first month."""
    most = resource.num_months * resource.thresholds[resource.initial]
    return 100.0 * (1.0 - max(0.0, most - total) / most) if most else 100.0


def equality(gains: Sequence[float | int]) -> float | None:
    """Return e = 100 (1 - sum_ij |R_i - R_j| / (2 N sum R)), which is 1 - Gini; None where nobody gained."""
    total, n = sum(gains), len(gains)
    if total == 0:
        return None
    ranked = sorted(gains)
    # sum_ij |R_i - R_j| = 2 sum_k (2k - n - 1) R_(k), with k from 1.
    spread = 2.0 * sum((2 * k - n - 1) * gain for k, gain in enumerate(ranked, start=1))
    return 100.0 * (1.0 - spread / (2.0 * n * total))


def num_over(amounts: Sequence[Sequence[int]], thresholds: Sequence[int], resource: Resource) -> int:
    """Count (agent, month) pairs beyond f_a: above it where one takes, below it where one must remove."""
    if resource.sense == "take":
        return sum(a > f for month, f in zip(amounts, thresholds, strict=True) for a in month)
    return sum(a < f for month, f in zip(amounts, thresholds, strict=True) for a in month)


def num_harvests(trajectory: Trajectory) -> int:
    """Count (agent, month) pairs."""
    return sum(len(month) for month in trajectory.obtained)


def over_usage(trajectory: Trajectory, *, asked: bool = False) -> float | None:
    """Return o, the percentage of (agent, month) pairs beyond f_a; by asks in place of catches with `asked`."""
    amounts = trajectory.asks if asked else trajectory.obtained
    pairs = num_harvests(trajectory)
    return 100.0 * num_over(amounts, trajectory.thresholds, trajectory.resource) / pairs if pairs else None


def over_usage_diluted(trajectory: Trajectory, num_utterances: int) -> float | None:
    """Return the value of the published tables: the same count over harvests and agents' utterances together."""
    rows = num_harvests(trajectory) + num_utterances
    over = num_over(trajectory.obtained, trajectory.thresholds, trajectory.resource)
    return 100.0 * over / rows if rows else None


def sustainability(trajectory: Trajectory) -> float | None:
    """Return the mean month (from 1) in which a unit was collected (after Perolat et al., 2017)."""
    amounts = [sum(month) for month in trajectory.obtained]
    total = sum(amounts)
    return sum(month * amount for month, amount in enumerate(amounts, start=1)) / total if total else None


def compliance(trajectory: Trajectory, limits: Sequence[int | None]) -> float | None:
    """Return the percentage of asks that keep the limit agreed the month before; None where none was agreed."""
    kept = [
        ask <= limit
        for limit, asks in zip(limits, trajectory.asks[1:], strict=False)
        if limit is not None
        for ask in asks
    ]
    return 100.0 * sum(kept) / len(kept) if kept else None


@dataclass(frozen=True)
class Score:
    """The metrics of one run. `None` is a value that is not defined."""

    months: int
    survived: bool
    collapsed: bool
    collapsed_at_end: bool
    total: int
    gain: float
    efficiency: float
    equality: float | None
    over_usage: float | None
    over_ask: float | None
    over_usage_diluted: float | None
    sustainability: float | None
    exploitation_gap: float | None
    regret: int | None
    agreement_rate: float | None
    compliance: float | None


def score(trajectory: Trajectory, *, num_utterances: int = 0, limits: Sequence[int | None] = ()) -> Score:
    """Return every metric of one run.

    Args:
        trajectory: the run, complete.
        num_utterances: what agents said (the moderator's reports not counted).
        limits: the limit agreed in each month, where the agents talked.
    """
    resource, gains = trajectory.resource, totals(trajectory)
    total, months = sum(gains), trajectory.num_months
    plain = resource.kind == "multiply" and resource.growth_high is None and resource.sense == "take"
    return Score(
        months=months,
        survived=months >= resource.num_months,
        collapsed=trajectory.collapsed,
        collapsed_at_end=trajectory.collapsed and months >= resource.num_months,
        total=total,
        gain=total / len(gains) if gains else 0.0,
        efficiency=efficiency(total, resource),
        equality=equality(gains) if gains else None,
        over_usage=over_usage(trajectory),
        over_ask=over_usage(trajectory, asked=True),
        over_usage_diluted=over_usage_diluted(trajectory, num_utterances),
        sustainability=sustainability(trajectory),
        exploitation_gap=100.0 * (max(gains) - min(gains)) / total if total else None,
        regret=optimum(resource, resource.num_months) - total if plain else None,
        agreement_rate=100.0 * sum(limit is not None for limit in limits) / len(limits) if limits else None,
        compliance=compliance(trajectory, limits),
    )
