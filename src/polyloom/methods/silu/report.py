"""The room's figures: what the series of its results are drawn as."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

STUDY_CAPTIONS = {
    "difference to": "Paired difference of the test means with its 95 % t interval; 0 is the baseline.",
    "under noise": "Test score under growing corruption, mean over the seeds with its 95 % t interval.",
    "learning curves": "Test score while training, at each activation's tuned learning rate, with 95 % t intervals.",
}


def figures(result: Result) -> list[Figure]:
    """Draw a result of the room: differences first, then noise and learning curves; other verbs as their groups say.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if result.verb != "study":
        return default_figures(result)
    drawn = []
    groups = series_groups(result)
    for kind, caption in STUDY_CAPTIONS.items():
        drawn += [series_figure(name, caption, group) for name, group in groups.items() if kind in name]
    return drawn
