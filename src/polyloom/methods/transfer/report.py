"""The room's figures: what each part adds, then the scores by language."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

CAPTIONS = {
    "what each part adds": "Difference of two arms on the mean of the target languages, with its 95 % interval over "
    "sentences; arms share seeds and batches.",
    "what a dictionary adds, by coverage": "Gain of the arm with the dictionary, in four parts of the sentences by the "
    "share of their words that the dictionary taught.",
    "scores by language": "Score of every arm by language, mean over the seeds with its 95 % t interval.",
}


def figures(result: Result) -> list[Figure]:
    """Draw a result of the room.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = series_groups(result)
    drawn = [series_figure(name, caption, groups[name]) for name, caption in CAPTIONS.items() if name in groups]
    return drawn or default_figures(result)
