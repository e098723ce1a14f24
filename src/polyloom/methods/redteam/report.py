"""The room's figures."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

CAPTIONS = {
    "success by objective and judge": "Share of unseen behaviours that count as opened, with 95 % intervals.",
    "attack curve": "Loss of the target over the steps of each search, a behaviour.",
    "defences: both halves": "What a defence lets through, beside the benign prompts that it leaves answered.",
}


def figures(result: Result) -> list[Figure]:
    """Draw success first, then the curve, then both halves of the defences; other verbs as their groups say.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = series_groups(result)
    if not any(name in groups for name in CAPTIONS):
        return default_figures(result)
    named = [
        series_figure(name, caption, groups[name], log_x=False) for name, caption in CAPTIONS.items() if name in groups
    ]
    return named
