"""The room's figures: exits first, then what each pair of exit and draft length would give."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, heat_figure, series_figure, series_groups

CAPTIONS = {
    "perplexity by exit": "Perplexity of the answers when the model is left after each layer.",
    "agreement by exit": "Share of tokens at which each exit gives what the last layer gives.",
}
HEAT_CAPTION = (
    "Speed over plain decoding that one plain decoding predicts for every exit (rows) and draft length (columns), from "
    "exact rounds and measured costs."
)


def figures(result: Result) -> list[Figure]:
    """Draw a result of the room.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = series_groups(result)
    drawn = [series_figure(name, caption, groups[name]) for name, caption in CAPTIONS.items() if name in groups]
    pairs = groups.get("predicted speed")
    if pairs:
        columns = [f"draft {x:.0f}" for x in next(iter(pairs.values())).x if x is not None]
        values = [series.y for series in pairs.values()]
        drawn.append(heat_figure("Predicted speed", HEAT_CAPTION, list(pairs), columns, values, series=tuple(pairs)))
    return drawn or default_figures(result)
