import json
import math

import pytest
from pydantic import ValidationError

from polyloom.core.errors import UserError
from polyloom.core.result import Scalar, Series, Table, read_result
from polyloom.metrics.statistics import Interval


def test_numbers_that_are_not_finite_become_null(run):
    result = run.result(scalars={"a": Scalar(value=float("nan"), low=float("-inf"), high=1.0)})
    stored = json.loads(result.model_dump_json())
    assert stored["scalars"]["a"] == {"value": None, "low": None, "high": 1.0, "unit": None}


def test_an_interval_becomes_a_figure():
    assert Scalar.of(Interval(1.0, 0.5, math.nan), "x") == Scalar(value=1.0, low=0.5, high=None, unit="x")


def test_tables_are_rectangular_and_series_of_equal_lengths():
    with pytest.raises(ValidationError, match="row 1"):
        Table(columns=["a", "b"], rows=[[1, 2], [3]])
    with pytest.raises(ValidationError, match="2 x and 1 y"):
        Series(x=[0, 1], y=[1])


def test_read_gives_back_what_was_written(run, tmp_path):
    result = run.result(
        scalars={"a": Scalar(value=1, unit="bits"), "b": Scalar(value=True)},
        tables={"t": Table(columns=["x"], rows=[[1], ["é"], [None], [False]])},
        series={"s": Series(x=[0, 1], y=[0.5, None], low=[0, 0], high=[1, 1])},
        verdicts=["better"],
        limitations=["synthetic"],
    )
    path = tmp_path / "result.json"
    path.write_text(result.model_dump_json())
    assert read_result(path) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2; this Polyloom reads up to 1. Upgrade"),
        ({"room": 3}, "is not a result: room"),
        ({"extra": 3}, "is not a result: extra"),
    ],
)
def test_other_files_are_refused(run, tmp_path, change, message):
    value = run.result().model_dump(mode="json") | change
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        read_result(path)
