"""Numbers and tables as people read them: digits that the interval supports, units, and intervals beside values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyloom.core.result import Scalar, Series, Table
from polyloom.reports.text import human, one_line

CellValue = str | int | float | bool | None

TABLE_DIGITS = 4
SCALAR_DIGITS = 6
MAX_DECIMALS = 15
MISSING = "–"
_SMALL, _LARGE = 1e-4, 1e7
_GROUPED_FROM = 10_000


@dataclass(frozen=True)
class Shown:
    """One cell as it is shown: its text, its interval, and the exact number behind it (None for words)."""

    text: str
    interval: str = ""
    exact: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table as it is shown; a column of bounds stands in the cells of the column that it bounds."""

    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Shown, ...], ...]
    title: str = ""


def format_number(value: float, digits: int = TABLE_DIGITS) -> str:
    """Format a number with `digits` significant digits; whole numbers are written out.

    Args:
        value: the number; NaN and infinities are shown as missing.
        digits: significant digits of a number that is not whole.
    """
    if not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        return _grouped(str(value))
    if value == 0:
        return "0"
    if _is_scientific(abs(value)):
        return _scientific(value, _exponent(value), digits - 1, trim=True)
    decimals = max(0, digits - 1 - _exponent(value))
    return _trimmed(_fixed(value, decimals))


def format_interval(value: float, low: float | None, high: float | None, digits: int = TABLE_DIGITS) -> tuple[str, str]:
    """Format a value and its interval with the digits that the interval supports.

    Half the interval's width is shown with two significant digits, and the value with as many decimals.

    Args:
        value: the estimate.
        low: the lower bound, None when there is none.
        high: the upper bound, None when there is none.
        digits: significant digits where the interval has no width.

    Returns:
        The value, and the interval as `[low, high]`; an open side is shown as missing.
    """
    bounds = [bound for bound in (low, high) if bound is not None and math.isfinite(bound)]
    if not bounds or not math.isfinite(value):
        return format_number(value, digits), ""
    half_width = (max(bounds) - min(bounds)) / 2 if len(bounds) == 2 else abs(bounds[0] - value)
    largest = max(abs(number) for number in (value, *bounds))
    if half_width == 0 or not math.isfinite(half_width):
        texts = [format_number(number, digits) for number in (value, *bounds)]
    elif _is_scientific(largest):
        exponent = _exponent(largest)
        decimals = min(MAX_DECIMALS, max(0, 1 - _exponent(half_width) + exponent))
        texts = [_scientific(number, exponent, decimals) for number in (value, *bounds)]
    else:
        decimals = min(MAX_DECIMALS, max(0, 1 - _exponent(half_width)))
        texts = [_fixed(number, decimals) for number in (value, *bounds)]
    shown = iter(texts[1:])
    sides = [next(shown) if bound is not None and math.isfinite(bound) else MISSING for bound in (low, high)]
    return texts[0], f"[{sides[0]}, {sides[1]}]"


def show_scalar(scalar: Scalar) -> Shown:
    """Return a scalar's value and interval as shown, without the unit."""
    value = scalar.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return show_cell(value)
    text, interval = format_interval(value, scalar.low, scalar.high, SCALAR_DIGITS)
    return Shown(text, interval, repr(value))


def format_scalar(scalar: Scalar) -> str:
    """Format a scalar in one line: value, interval and unit, for example `2.31 [2.25, 2.38] bits/byte`."""
    shown = show_scalar(scalar)
    text = f"{shown.text} {shown.interval}".strip()
    if not scalar.unit:
        return text
    return f"{text}{unit_gap(scalar.unit)}{one_line(scalar.unit)}"


def unit_gap(unit: str) -> str:
    """Return what stands between a number and its unit: nothing before a percent sign."""
    return "" if unit == "%" else " "


def show_cell(value: CellValue, digits: int = TABLE_DIGITS) -> Shown:
    """Return one value of a table as shown."""
    if value is None:
        return Shown(MISSING)
    if isinstance(value, bool):
        return Shown("yes" if value else "no")
    if isinstance(value, str):
        return Shown(one_line(value))
    return Shown(format_number(value, digits), exact=repr(value))


def grid(table: Table) -> Grid:
    """Lay out a table: numbers of a column alike, bounds beside the values that they bound."""
    bounded = _bounded_columns(table)
    hidden = {bound for bounds in bounded.values() for bound in bounds}
    columns = [index for index in range(len(table.columns)) if index not in hidden]
    headers = tuple(one_line(table.columns[i]) + (" [low, high]" if i in bounded else "") for i in columns)
    shown = [
        _bounded_cells(table, index, *bounded[index]) if index in bounded else _cells(_column(table, index))
        for index in columns
    ]
    numeric = tuple(_is_numeric(_column(table, index)) for index in columns)
    rows = tuple(zip(*shown, strict=True)) if shown else ()
    return Grid(headers, numeric, rows, one_line(table.title))


def scalars_table(scalars: dict[str, Scalar], title: str = "") -> Grid:
    """Lay out scalars as a table of names and values with intervals and units."""
    rows = []
    for name, scalar in scalars.items():
        shown = show_scalar(scalar)
        unit = unit_gap(scalar.unit) + one_line(scalar.unit) if scalar.unit else ""
        rows.append((Shown(human(name)), Shown(shown.text + unit, shown.interval, shown.exact)))
    # Words among the numbers read better when all start at one edge.
    numbers = all(row[1].exact is not None for row in rows)
    return Grid(("figure", "value [low, high]"), (False, numbers), tuple(rows), title)


def series_table(series: dict[str, Series], title: str = "") -> Grid:
    """Lay out the numbers of a figure: one row a point, with the bounds of each point."""
    columns = ["series", _first(s.x_label for s in series.values()) or "x"]
    columns += [_first(s.y_label for s in series.values()) or "y"]
    rows: list[list[CellValue]] = []
    for name, curve in series.items():
        for i, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)):
            place: CellValue = curve.x_names[i] if curve.x_names else x
            bounds = [side[i] if side else None for side in (curve.low, curve.high)]
            rows.append([human(name), place, y, *bounds])
    if any(row[3] is not None or row[4] is not None for row in rows):
        return grid(Table(columns=[*columns, "low", "high"], rows=rows, title=title))
    return grid(Table(columns=columns, rows=[row[:3] for row in rows], title=title))


def _first(labels: object) -> str:
    return next((str(label) for label in labels if label), "")  # type: ignore[attr-defined]


def _column(table: Table, index: int) -> list[CellValue]:
    return [row[index] for row in table.rows]


def _is_numeric(cells: Sequence[CellValue]) -> bool:
    given = [cell for cell in cells if cell is not None]
    return bool(given) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in given)


def _bounded_columns(table: Table) -> dict[int, tuple[int, int]]:
    """Find the columns that are followed by their lower and upper bounds: `low, high`, or `x_low, x_high`."""
    found: dict[int, tuple[int, int]] = {}
    for index in range(len(table.columns) - 2):
        names = [re.fullmatch(r"(?i)(?:(.*)[ _])?(low|high)", name.strip()) for name in table.columns[index + 1 :][:2]]
        if not (names[0] and names[1]) or (names[0][2].lower(), names[1][2].lower()) != ("low", "high"):
            continue
        prefixes = {names[0][1], names[1][1]}
        bounds = [*_column(table, index + 1), *_column(table, index + 2)]
        given = [cell for cell in bounds if cell is not None]
        numbers = _is_numeric(_column(table, index)) and (not given or _is_numeric(given))
        if numbers and prefixes <= {None, table.columns[index].strip()}:
            found[index] = (index + 1, index + 2)
    return found


def _bounded_cells(table: Table, index: int, low: int, high: int) -> list[Shown]:
    cells = []
    for row in table.rows:
        value = row[index]
        if value is None or isinstance(value, str):
            cells.append(show_cell(value))
            continue
        lower, upper = (float(row[i]) if isinstance(row[i], int | float) else None for i in (low, high))  # type: ignore[arg-type]
        text, interval = format_interval(value, lower, upper)
        cells.append(Shown(text, interval, repr(value)))
    return cells


def _cells(column: list[CellValue]) -> list[Shown]:
    decimals = _common_decimals(column)
    if decimals is None:
        return [show_cell(cell) for cell in column]
    return [Shown(_fixed(c, decimals), exact=repr(c)) if isinstance(c, float) else show_cell(c) for c in column]


def _common_decimals(column: list[CellValue]) -> int | None:
    """Return the decimals that suit all floats of a column, None where one number would lose what it says."""
    sizes = [abs(cell) for cell in column if isinstance(cell, float) and cell]
    if len(sizes) < 2 or not _is_numeric(column) or any(_is_scientific(size) for size in sizes):
        return None
    decimals = max(0, TABLE_DIGITS - 1 - _exponent(max(sizes)))
    decimals = min(decimals, max(len(_trimmed(_fixed(size, decimals)).partition(".")[2]) for size in sizes))
    return decimals if min(sizes) >= 10.0 ** (1 - decimals) or _exact(sizes, decimals) else None


def _exact(sizes: list[float], decimals: int) -> bool:
    return all(math.isclose(float(f"{size:.{decimals}f}"), size, rel_tol=1e-9) for size in sizes)


def _is_scientific(size: float) -> bool:
    return size != 0 and (size < _SMALL or size >= _LARGE)


def _exponent(value: float) -> int:
    """Return the power of ten of the first digit."""
    return int(f"{abs(value):e}".partition("e")[2])


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return _grouped(text.removeprefix("-") if not text.strip("-0.") else text)


def _scientific(value: float, exponent: int, decimals: int, trim: bool = False) -> str:
    # Two divisions: a power of ten below the smallest float would be no number.
    half = exponent // 2
    mantissa = f"{value / 10.0**half / 10.0 ** (exponent - half):.{decimals}f}"
    if not mantissa.strip("-0."):
        return mantissa.removeprefix("-")
    return f"{_trimmed(mantissa) if trim else mantissa}e{exponent}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _grouped(text: str) -> str:
    whole, point, rest = text.partition(".")
    if len(whole.removeprefix("-")) < len(str(_GROUPED_FROM)):
        return text
    return f"{int(whole):,}{point}{rest}"
