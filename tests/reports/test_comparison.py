"""Two results side by side, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.reports.comparison import compare_figures, compare_options, compare_rows
from polyloom.runs.folder import Run


def table(rows: list[list[object]], columns: list[str] | None = None) -> Table:
    return Table(columns=columns or ["seed", "arm", "loss"], rows=rows, title="Losses")  # type: ignore[arg-type]


def with_tables(run: Run, rows: list[list[object]], columns: list[str] | None = None) -> Result:
    return run.result(tables={"losses": table(rows, columns)})


def test_only_options_that_differ_are_listed(run):
    first, second = run.result(), run.result()
    other = second.provenance.model_copy(update={"config": {"seed": 1, "size": "b"}})
    options = compare_options(first, second.model_copy(update={"provenance": other}))
    assert [(row.name, row.first, row.second) for row in options] == [("seed", 0, 1), ("size", None, "b")]


def test_the_interval_of_independent_runs_adds_squares_of_half_widths(run):
    first = run.result(scalars={"x": Scalar(value=10.0, low=7.0, high=13.0)})
    second = run.result(scalars={"x": Scalar(value=20.0, low=16.0, high=24.0)})
    [row] = compare_figures(first, second)
    assert (row.difference, row.interval) == ("10.0", "[5.0, 15.0]")


def test_units_that_differ_and_words_give_no_difference(run):
    first = run.result(scalars={"x": Scalar(value=1.0, unit="s"), "w": Scalar(value="a"), "only": Scalar(value=1)})
    second = run.result(scalars={"x": Scalar(value=2.0, unit="ms"), "w": Scalar(value="b")})
    assert [row.difference for row in compare_figures(first, second)] == ["", "", ""]
    assert compare_figures(first, second)[2].second == "–"


def test_rows_are_matched_by_seed_and_words_whatever_their_order(run):
    first = with_tables(run, [[0, "a", 1.0], [1, "a", 2.0], [2, "a", 3.0]])
    second = with_tables(run, [[2, "a", 3.5], [0, "a", 1.5], [1, "a", 2.5], [3, "a", 9.0]])
    [row] = compare_rows(first, second)
    assert (row.table, row.column, row.matched_by, row.num_pairs) == ("Losses", "loss", "seed, arm", 3)
    assert float(row.mean) == pytest.approx(0.5)
    # Three equal signs of three: the smallest sign-flip p is 2 of 8.
    assert row.p == pytest.approx(0.25)
    assert row.word == "undecided"


def test_a_certain_difference_of_many_seeds_is_called_one(run):
    first = with_tables(run, [[seed, "a", float(seed)] for seed in range(10)])
    second = with_tables(run, [[seed, "a", seed + 1.0 + 0.01 * (seed % 3)] for seed in range(10)])
    [row] = compare_rows(first, second)
    assert row.word == "differs"
    assert row.p == pytest.approx(2 / 2**10)


def test_rows_without_one_partner_each_and_statistics_are_left_out(run):
    double = [[0, "a", 1.0], [0, "a", 2.0], [1, "a", 2.0], [2, "a", 2.0]]
    assert compare_rows(with_tables(run, double), with_tables(run, double)) == []
    columns = ["arm", "corrected p", "loss sd", "loss_low"]
    rows: list[list[object]] = [[name, 0.1, 1.0, 2.0] for name in "abcd"]
    other: list[list[object]] = [[name, 0.2, 2.0, 3.0] for name in "abcd"]
    assert compare_rows(with_tables(run, rows, columns), with_tables(run, other, columns)) == []


def test_bars_are_compared_and_points_of_curves_are_not(run):
    bars = Series(x=[0, 1, 2], y=[1, 2, 3], x_names=["a", "b", "c"], kind="bar")
    taller = bars.model_copy(update={"y": [2, 3, 5]})
    first, second = run.result(series={"s": bars}), run.result(series={"s": taller})
    assert [row.num_pairs for row in compare_rows(first, second)] == [3]
    lines = [
        part.model_copy(update={"series": {"s": part.series["s"].model_copy(update={"kind": "line"})}})
        for part in (first, second)
    ]
    assert compare_rows(*lines) == []


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=3, max_size=12))
def test_swapping_the_runs_turns_the_sign(values):
    def result(side: int) -> dict[str, Table]:
        return {"t": table([[seed, "a", pair[side]] for seed, pair in enumerate(values)])}

    def of(tables: dict[str, Table]) -> Result:
        return Result.model_construct(tables=tables, series={}, scalars={})

    there, back = compare_rows(of(result(0)), of(result(1))), compare_rows(of(result(1)), of(result(0)))
    assert [row.p for row in there] == [row.p for row in back]
    for a, b in zip(there, back, strict=True):
        assert math.isclose(float(a.mean.replace(",", "")), -float(b.mean.replace(",", "")), abs_tol=1e-12)
