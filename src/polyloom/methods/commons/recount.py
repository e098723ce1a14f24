"""A second, plain computation of the metrics from the raw rows of a `log_env.json`, to hold the first against."""

from __future__ import annotations

import json
from pathlib import Path

from polyloom.methods.commons.logs import LoggedRun


def recount(path: Path, horizon: int) -> dict[str, float | None]:
    """Compute months, gain, efficiency, equality, over-usage and its diluted variant row by row, term by term."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    harvests = [row for row in rows if row["action"] == "harvesting"]
    said = [row for row in rows if row["action"] == "utterance" and row["agent_id"] != "framework"]
    agents = sorted({row["agent_id"] for row in harvests})
    total = {agent: sum(row["resource_collected"] for row in harvests if row["agent_id"] == agent) for agent in agents}
    everything = sum(total.values())
    unequal = sum(abs(total[a] - total[b]) for a in agents for b in agents)
    over = 0
    for row in harvests:
        present = sum(other["round"] == row["round"] for other in harvests)
        over += row["resource_collected"] > (row["resource_in_pool_before_harvesting"] // 2) // present
    return {
        "months": float(len({row["round"] for row in harvests})),
        "gain": everything / len(agents),
        "efficiency": 100 * (1 - max(0, horizon * 50 - everything) / (horizon * 50)),
        "equality": 100 * (1 - unequal / (2 * len(agents) * everything)) if everything else None,
        "over_usage": 100 * over / len(harvests),
        "over_usage_diluted": 100 * over / (len(harvests) + len(said)),
    }


def largest_difference(run: LoggedRun, path: Path) -> float:
    """Return how far the metrics of a whole log lie from the recount, at most.

    Over-usage is compared in the paper's sense (more than f_a was obtained), also for a game of removing.
    """
    one, plain = run.score(), recount(path, run.trajectory.resource.num_months)
    rows = sum(len(month) for month in run.trajectory.obtained)
    as_taking = run.over_usage_as_taking() or 0.0
    ours = {
        "months": float(one.months),
        "gain": one.gain,
        "efficiency": one.efficiency,
        "equality": one.equality,
        "over_usage": as_taking,
        "over_usage_diluted": as_taking * rows / (rows + len(run.turns)),
    }
    if (ours["equality"] is None) != (plain["equality"] is None):
        return float("inf")
    return max(abs((ours[name] or 0.0) - (value or 0.0)) for name, value in plain.items())
