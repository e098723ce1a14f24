"""Two results side by side: the options that differ, figures with intervals, and differences over matched rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.metrics.statistics import holm, sign_flip_p, t_interval
from polyloom.reports.tables import MISSING, format_interval, format_scalar
from polyloom.reports.text import human, one_line, sentence

MIN_PAIRS = 3
ALPHA = 0.05
# Columns of numbers that say which row it is rather than what was measured there.
UNITS = ("seed", "item", "document", "fold", "task", "pair")
# Columns of words that say what was found.
FOUND = ("word", "verdict", "status", "run")
# Columns that say how sure a number is rather than what it is.
STATISTICS = ("p", "sd", "se", "n", "d_z", "df", "low", "high", "pairs", "seeds", "runs")


@dataclass(frozen=True)
class Option:
    """An option that the two runs do not share."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class FigurePair:
    """A figure of both results, and their difference where both are numbers.

    The difference's interval treats the two runs as independent: it adds the squares of the half widths.
    """

    name: str
    first: str
    second: str
    difference: str = ""
    interval: str = ""


@dataclass(frozen=True)
class RowDifference:
    """The mean difference (second less first) of one column over the rows that both results have.

    Attributes:
        table: the table's title.
        column: what was measured.
        matched_by: the columns that say which rows belong together.
        num_pairs: number of rows.
        mean: the mean difference.
        interval: its 95 % interval (Student's t).
        p: sign-flip p value, corrected by Holm over all differences that are shown.
        word: `differs` or `undecided`.
    """

    table: str
    column: str
    matched_by: str
    num_pairs: int
    mean: str
    interval: str
    p: float
    word: str


def compare_options(first: Result, second: Result) -> list[Option]:
    """Return the options that differ; an option that one of them does not have is None there."""
    a, b = first.provenance.config, second.provenance.config
    names = dict.fromkeys([*a, *b])
    return [Option(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]


def compare_figures(first: Result, second: Result) -> list[FigurePair]:
    """Return the scalars of both results side by side."""
    names = dict.fromkeys([*first.scalars, *second.scalars])
    return [_figure(name, first.scalars.get(name), second.scalars.get(name)) for name in names]


def _figure(name: str, first: Scalar | None, second: Scalar | None) -> FigurePair:
    left, right = (format_scalar(scalar) if scalar else MISSING for scalar in (first, second))
    numbers = [_number(scalar.value) if scalar else None for scalar in (first, second)]
    if numbers[0] is None or numbers[1] is None or first is None or second is None or first.unit != second.unit:
        return FigurePair(name, left, right)
    difference = numbers[1] - numbers[0]
    widths = [
        (scalar.high - scalar.low) / 2
        for scalar in (first, second)
        if scalar.low is not None and scalar.high is not None
    ]
    low = high = None
    if len(widths) == 2:
        low, high = difference - math.hypot(*widths), difference + math.hypot(*widths)
    return FigurePair(name, left, right, *format_interval(difference, low, high))


def compare_rows(first: Result, second: Result) -> list[RowDifference]:
    """Return the mean differences over the rows of tables and the bars of figures that both results have.

    Rows belong together when all their words and their seed are the same; a table in which that leaves a row with
    more than one partner is left out, and so is a column that is the same in both.
    """
    found: list[tuple[str, str, str, list[float]]] = []
    for name, table in first.tables.items():
        if name in second.tables and second.tables[name].columns == table.columns:
            found += _table_differences(name, table, second.tables[name])
    for name, series in first.series.items():
        if name in second.series and series.kind != "line":
            found += _series_differences(name, series, second.series[name])
    kept = [row for row in found if len(row[3]) >= MIN_PAIRS and any(row[3])]
    if not kept:
        return []
    corrected = holm([sign_flip_p(differences) for *_, differences in kept])
    return [_row(*row, p=float(p)) for row, p in zip(kept, corrected, strict=True)]


def _row(table: str, column: str, matched_by: str, differences: list[float], p: float) -> RowDifference:
    interval = t_interval(differences)
    mean, bounds = format_interval(interval.value, interval.low, interval.high)
    word = "differs" if p <= ALPHA else "undecided"
    return RowDifference(table, column, matched_by, len(differences), mean, bounds, p, word)


def _table_differences(name: str, first: Table, second: Table) -> list[tuple[str, str, str, list[float]]]:
    title = sentence(one_line(first.title) or human(name))
    keys = [i for i, column in enumerate(first.columns) if _is_key(column, [*first.rows, *second.rows], i)]
    a, b = _by_key(first.rows, keys), _by_key(second.rows, keys)
    if a is None or b is None or not keys:
        return []
    matched_by = ", ".join(one_line(first.columns[i]) for i in keys)
    found = []
    for i, column in enumerate(first.columns):
        last = re.split(r"[ _]", column.strip().lower())[-1]
        if i in keys or last in (*FOUND, *STATISTICS) or column.strip().lower() in STATISTICS:
            continue
        pairs = [(_number(a[key][i]), _number(b[key][i])) for key in a if key in b]
        found.append(
            (title, one_line(column), matched_by, [y - x for x, y in pairs if x is not None and y is not None])
        )
    return found


def _series_differences(name: str, first: Series, second: Series) -> list[tuple[str, str, str, list[float]]]:
    a, b = (dict(zip(series.x_names or series.x, series.y, strict=True)) for series in (first, second))
    if len(a) < len(first.x) or len(b) < len(second.x):
        return []
    differences = [b[place] - y for place, y in a.items() if y is not None and b.get(place) is not None]  # type: ignore[operator]
    return [(sentence(one_line(first.group) or human(name)), human(name), one_line(first.x_label), differences)]


def _is_key(column: str, rows: Sequence[list[Cell]], index: int) -> bool:
    name = column.strip().lower()
    if name in UNITS or name in FOUND:
        return name in UNITS
    return any(isinstance(row[index], str | bool) for row in rows)


def _by_key(rows: Sequence[list[Cell]], keys: list[int]) -> dict[tuple[Cell, ...], list[Cell]] | None:
    found = {tuple(row[i] for i in keys): row for row in rows}
    return found if len(found) == len(rows) else None


def _number(value: Cell) -> float | None:
    return None if value is None or isinstance(value, bool | str) else float(value)
