"""The room's figures."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

CAPTION = (
    "Points that a block adds to the same base without one; the whiskers span the wider of the 95 % intervals over "
    "seeds and over test items."
)


def figures(result: Result) -> list[Figure]:
    """Draw the study's differences base by base; other verbs as their series' groups say.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if result.verb != "study":
        return default_figures(result)
    return [series_figure(name, CAPTION, group) for name, group in series_groups(result).items()]
