"""Digits, units and intervals, against values worked out by hand."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.result import Scalar, Table
from polyloom.reports.tables import format_interval, format_number, format_scalar, grid, scalars_table, show_cell

# A rounded number of the largest power of ten would be none.
finite = st.floats(-1e300, 1e300)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 4, "0"),
        (-0.0, 4, "0"),
        (4.0, 4, "4"),
        (0.5, 4, "0.5"),
        (0.1 + 0.2, 4, "0.3"),
        (-0.2784645427610738, 6, "-0.278465"),
        (1.09984, 4, "1.1"),
        (9.99996, 4, "10"),
        (123.456, 4, "123.5"),
        (2024.0, 4, "2024"),
        (98765.4, 4, "98,765"),
        (-98765.4, 4, "-98,765"),
        (0.0001, 4, "0.0001"),
        (3.2e-7, 4, "3.2e-7"),
        (-1.5e12, 4, "-1.5e12"),
        (5e-324, 4, "4.941e-324"),
        (9999, 4, "9999"),
        (1312384, 4, "1,312,384"),
        (math.nan, 4, "–"),
        (math.inf, 4, "–"),
    ],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        # Half the width is 0.0034: two digits of it are four decimals.
        (0.1234, 0.1200, 0.1268, ("0.1234", "[0.1200, 0.1268]")),
        (1.4732, 1.4411, 1.5093, ("1.473", "[1.441, 1.509]")),
        (1.0, 0.5, 1.5, ("1.00", "[0.50, 1.50]")),
        (98.76543, 96.0, 101.0, ("98.8", "[96.0, 101.0]")),
        (1234.5, 1200.0, 1270.0, ("1234", "[1200, 1270]")),
        (123456.0, 100000.0, 150000.0, ("123,456", "[100,000, 150,000]")),
        (0.001, -0.004, 0.006, ("0.0010", "[-0.0040, 0.0060]")),
        (-0.001, -0.2, 0.2, ("0.00", "[-0.20, 0.20]")),
        (1e-9, 0.9e-9, 1.1e-9, ("1.00e-9", "[0.90e-9, 1.10e-9]")),
        (2.5e8, 2e8, 3e8, ("2.50e8", "[2.00e8, 3.00e8]")),
        (3, 2.5, 3.5, ("3.00", "[2.50, 3.50]")),
        (0.75, 0.75, 0.75, ("0.75", "[0.75, 0.75]")),
        (0.75, 0.5, None, ("0.75", "[0.50, –]")),
        (0.75, None, 1.0, ("0.75", "[–, 1.00]")),
        (0.75, None, None, ("0.75", "")),
        (0.75, math.nan, math.inf, ("0.75", "")),
    ],
)
def test_intervals(value: float, low: float | None, high: float | None, shown: tuple[str, str]) -> None:
    assert format_interval(value, low, high) == shown


@given(finite, st.integers(min_value=1, max_value=9))
def test_a_formatted_number_reads_back_to_its_digits(value: float, digits: int) -> None:
    back = float(format_number(value, digits).replace(",", ""))
    assert back == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits), abs=1e-323)


@given(finite, finite, finite)
def test_bounds_stay_in_order_and_within_the_digits_shown(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    text, interval = format_interval(value, low, high)
    bounds = [float(side.replace(",", "")) for side in re.fullmatch(r"\[(.+), (.+)\]", interval).groups()]  # type: ignore[union-attr]
    middle = float(text.replace(",", ""))
    assert bounds[0] <= middle <= bounds[1]
    # Two digits of half the width: no bound is moved by more than a tenth of it.
    half = high / 2 - low / 2
    assert abs(bounds[0] - low) <= max(0.1 * half, 1e-3 * abs(low), 1e-15)


def test_units() -> None:
    assert format_scalar(Scalar(value=12.5, unit="%")) == "12.5%"
    assert format_scalar(Scalar(value=2.0, low=1.0, high=3.0, unit="bits/byte")) == "2.0 [1.0, 3.0] bits/byte"
    assert format_scalar(Scalar(value=True)) == "yes"
    assert format_scalar(Scalar(value=None, unit="s")) == "– s"
    assert format_scalar(Scalar(value="two\nlines")) == "two lines"


def test_bounds_stand_beside_what_they_bound() -> None:
    table = Table(
        columns=["a", "f1", "f1_low", "f1_high", "n"], rows=[["x", 0.5, 0.4, 0.6, 3], ["y", 0.7, None, None, 4]]
    )
    shown = grid(table)
    assert shown.headers == ("a", "f1 [low, high]", "n")
    assert shown.numeric == (False, True, True)
    assert [(cell.text, cell.interval, cell.exact) for cell in shown.rows[0]] == [
        ("x", "", None),
        ("0.50", "[0.40, 0.60]", "0.5"),
        ("3", "", "3"),
    ]
    assert shown.rows[1][1].interval == ""


@pytest.mark.parametrize(
    "columns", [["a", "low", "high"], ["a", "b_low", "b_high"], ["a", "high", "low"], ["a", "b", "c"]]
)
def test_other_columns_stay_columns(columns: list[str]) -> None:
    table = Table(columns=columns, rows=[["words" if columns[1] == "low" else 1.0, 2.0, 3.0]])
    assert len(grid(table).headers) == 3


def test_a_column_has_like_decimals_unless_a_number_would_be_lost() -> None:
    rows = [[0.5, 100.0, 2.0], [0.1234, 0.0123, 3.0]]
    texts = [[cell.text for cell in row] for row in grid(Table(columns=["a", "b", "c"], rows=rows)).rows]
    assert texts == [["0.5000", "100", "2"], ["0.1234", "0.0123", "3"]]


@given(
    st.lists(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), finite, st.text()), min_size=3, max_size=3))
)
def test_any_table_is_laid_out_whole(rows: list[list[object]]) -> None:
    table = Table.model_validate({"columns": ["a", "b", "c"], "rows": rows})
    shown = grid(table)
    assert len(shown.rows) == len(rows)
    exact = [cell.exact for row in shown.rows for cell in row if cell.exact is not None]
    numbers = [c for row in table.rows for c in row if isinstance(c, int | float) and not isinstance(c, bool)]
    assert exact == [repr(number) for number in numbers]


def test_scalars_keep_their_exact_value() -> None:
    shown = scalars_table({"time_ratio": Scalar(value=1.0312, low=1.011, high=1.052, unit="x")})
    assert shown.rows[0][0].text == "time ratio"
    assert (shown.rows[0][1].text, shown.rows[0][1].interval) == ("1.031 x", "[1.011, 1.052]")
    assert shown.rows[0][1].exact == "1.0312"


def test_control_characters_never_reach_a_cell() -> None:
    assert show_cell("\x1b[31mred\x00").text == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
