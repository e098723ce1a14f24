"""Figures of a result: a few designs, drawn from its series, with the words that say what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyloom.core.registry import load
from polyloom.core.result import Result, Series
from polyloom.reports.commands import find_card
from polyloom.reports.tables import format_number
from polyloom.reports.text import human, one_line, sentence

MAX_BARS = 48
MAX_TOLD_POINTS = 12


@dataclass(frozen=True)
class Figure:
    """A drawing for a report.

    Attributes:
        name: its title, and its accessible name.
        caption: a sentence below it.
        svg: a whole SVG document; the page gives it its colours.
        description: what a person who does not see it is told; by default the caption.
        series: the names of the result's series that it shows, whose numbers are then listed below it.
    """

    name: str
    caption: str
    svg: str
    description: str = ""
    series: tuple[str, ...] = ()


def figures_for(result: Result) -> list[Figure]:
    """Return the figures of a result: those of its room's card, or the default ones.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    card = find_card(result.room)
    if card is None or card.report is None:
        return default_figures(result)
    figures: list[Figure] = load(card.report)(result)
    return figures


def default_figures(result: Result) -> list[Figure]:
    """Draw one figure for each group of series; a series without a group is a group of its own.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    return [_default_figure(name, group) for name, group in series_groups(result).items()]


def series_groups(result: Result) -> dict[str, dict[str, Series]]:
    """Return the series that belong in one figure, by the figure's name."""
    groups: dict[str, dict[str, Series]] = {}
    for name, series in result.series.items():
        if any(y is not None for y in series.y):
            groups.setdefault(series.group or human(name), {})[name] = series
    return groups


def _default_figure(name: str, group: Mapping[str, Series]) -> Figure:
    first = next(iter(group.values()))
    name = sentence(one_line(name))
    x_label, y_label = one_line(first.x_label), one_line(first.y_label) or name
    caption = f"{sentence(y_label)} by {x_label}." if x_label else ""
    if _wants_heat_map(group):
        return heat_figure(name, caption, *_as_matrix(group), series=tuple(group))
    if any(series.low or series.high for series in group.values()):
        kinds = {series.kind for series in group.values()}
        caption = f"{caption} The {'bands' if kinds == {'line'} else 'whiskers'} are intervals.".strip()
    return series_figure(name, caption, group)


def series_figure(name: str, caption: str, series: Mapping[str, Series], *, log_x: bool | None = None) -> Figure:
    """Draw series in one figure, each as its `kind` says: lines with bands, bars with whiskers, or points.

    Args:
        name: the figure's title.
        caption: a sentence below it.
        series: the series by name; bars are not mixed with other kinds.
        log_x: a logarithmic horizontal axis; by default where the points lie evenly on one.

    Returns:
        The figure, with a description made from its numbers.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    from polyloom.reports import drawing

    bars = all(curve.kind == "bar" for curve in series.values())
    svg = drawing.draw_bars(series) if bars else drawing.draw_curves(series, log_x)
    return Figure(one_line(name), one_line(caption), svg, describe(series), tuple(series))


def heat_figure(
    name: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    series: tuple[str, ...] = (),
) -> Figure:
    """Draw a table of numbers as shaded cells with their numbers in them.

    Args:
        name: the figure's title.
        caption: a sentence below it.
        rows: names of the rows.
        columns: names of the columns.
        values: one list a row; None leaves a cell empty. Numbers below zero take a second colour.
        series: names of the result's series whose numbers it shows.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    from polyloom.reports import drawing

    svg = drawing.draw_heat_map(list(rows), list(columns), [list(row) for row in values])
    told = [_tell(row, zip(columns, line, strict=True)) for row, line in zip(rows, values, strict=True)]
    description = f"Shaded table of {len(rows)} rows and {len(columns)} columns. " + " ".join(told)
    return Figure(one_line(name), one_line(caption), svg, description, series)


def describe(series: Mapping[str, Series]) -> str:
    """Say in words what the series show: every point of short ones, first, least, greatest and last of long ones."""
    return " ".join(_describe(human(name), curve) for name, curve in series.items())


def _describe(name: str, series: Series) -> str:
    names = series.x_names or [format_number(x) if x is not None else "" for x in series.x]
    points = [(str(place), y) for place, y in zip(names, series.y, strict=True) if y is not None]
    if not points:
        return f"{name}: no points."
    if len(points) <= MAX_TOLD_POINTS:
        return _tell(name, points)
    least, greatest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    words = zip(("first", "least", "greatest", "last"), (points[0], least, greatest, points[-1]), strict=True)
    told = ", ".join(f"{word} {format_number(y)} at {one_line(place)}" for word, (place, y) in words)
    return f"{name}: {len(points)} points, {told}."


def _tell(name: str, points: object) -> str:
    told = (f"{one_line(str(place))} {format_number(y)}" for place, y in points if y is not None)  # type: ignore[attr-defined]
    return f"{one_line(name)}: {', '.join(told)}."


def _wants_heat_map(group: Mapping[str, Series]) -> bool:
    if len(group) < 4 or any(series.kind != "bar" or not series.x_names for series in group.values()):
        return False
    return sum(len(series.x) for series in group.values()) > MAX_BARS


def _as_matrix(group: Mapping[str, Series]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Lay bars out with one column a series and one row a name."""
    names = list(dict.fromkeys(name for series in group.values() for name in series.x_names or ()))
    heights = [dict(zip(series.x_names or (), series.y, strict=True)) for series in group.values()]
    return names, [human(name) for name in group], [[height.get(name) for height in heights] for name in names]
