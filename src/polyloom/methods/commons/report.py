"""The room's figures: how long communities last first, then their stock, then what an event log's month looked like."""

from __future__ import annotations

from polyloom.core.result import Result, Series, Table
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

CAPTIONS = {
    "Survival": "Share of communities that have not collapsed (Kaplan-Meier; a run at its horizon counts as alive).",
    "Stock": "Mean stock at the start of each month, 0 after a collapse; the bands are 95 % intervals over runs.",
    "Learners": "Mean stock under learners of the two kinds, playing greedily after training.",
}


def figures(result: Result) -> list[Figure]:
    """Draw a result of the room.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = series_groups(result)
    drawn = [series_figure(name, caption, groups[name]) for name, caption in CAPTIONS.items() if name in groups]
    paired = result.tables.get("paired")
    if paired is not None and paired.rows:
        drawn.append(_difference_figure(paired))
    rest = {name: series for name, series in result.series.items() if series.group not in CAPTIONS}
    return [*drawn, *default_figures(result.model_copy(update={"series": rest}))]


def _difference_figure(table: Table) -> Figure:
    """Draw the differences of efficiency from the base with their intervals."""
    place = {name: table.columns.index(name) for name in ("group", "difference", "low", "high")}
    columns = {name: [row[at] for row in table.rows] for name, at in place.items()}
    names = [str(name) for name in columns.pop("group")]
    numbers = {key: [float(x) if isinstance(x, int | float) else None for x in xs] for key, xs in columns.items()}
    bars = Series(
        x=[float(i) for i in range(len(names))],
        y=numbers["difference"],
        low=numbers["low"],
        high=numbers["high"],
        y_label="points of efficiency",
        x_names=names,
        kind="bar",
    )
    caption = (
        "Difference of efficiency on the same seeds, with its 95 % interval. An interval that holds 0 decides nothing."
    )
    return series_figure(table.title, caption, {"difference": bars})
