import json

import pytest

from polyloom.cli.runs import comparison
from polyloom.core import registry
from polyloom.core.result import Result, Scalar
from tests import demo_room


@pytest.fixture(autouse=True)
def demo(monkeypatch):
    monkeypatch.setattr(registry, "rooms", lambda: {"demo": demo_room.CARD})


def test_list_show_report_rerun_compare_delete(cli, tmp_path):
    assert "No runs yet" in cli("runs", "list").stdout
    cli("demo", "count", "--run", "a", "--num-steps", 2)
    cli("demo", "count", "--run", "b", "--num-steps", 4)
    assert [row["id"] for row in json.loads(cli("runs", "list", "--json").stdout)] == ["b", "a"]
    assert "counted to 2" in cli("runs", "show", "a").stdout
    assert Result.model_validate_json(cli("runs", "show", "a", "--json").stdout).run == "a"

    (tmp_path / "runs" / "a" / "report.html").unlink()
    assert cli("report", "a").stdout.strip().endswith("report.html")
    assert (tmp_path / "runs" / "a" / "report.html").exists()
    assert "counted to 2" in cli("report", "a", "--format", "markdown").stdout
    assert Result.model_validate_json(cli("report", "a", "--format", "json").stdout).run == "a"

    again = Result.model_validate_json(cli("rerun", "a", "--name", "c", "--json").stdout)
    assert (again.run, again.scalars["total"].value) == ("c", 1)

    difference = json.loads(cli("runs", "compare", "a", "b", "--json").stdout)
    assert difference["options"] == [{"name": "num_steps", "first": 2, "second": 4}]
    total = {"name": "total", "first": "1", "second": "6", "difference": "5", "interval": ""}
    assert difference["figures"] == [total]
    assert difference["paired"] == []
    assert "num_steps" in cli("runs", "compare", "a", "b").stdout

    assert cli("runs", "delete", "a").exit_code == 0
    assert cli("runs", "show", "a").exit_code == 2
    assert "Indexed 2 runs" in cli("runs", "reindex").stderr


def test_an_unfinished_run_is_shown_with_what_to_do_next(cli, tmp_path):
    assert cli("demo", "fail", "--run", "x").exit_code == 1
    shown = cli("runs", "show", "x").stdout
    assert "failed" in shown
    assert "a defect" in shown
    assert "polyloom runs resume x" in shown
    assert json.loads(cli("runs", "show", "x", "--json").stdout)["status"] == "failed"
    assert cli("runs", "compare", "x", "x").exit_code == 2
    assert cli("runs", "resume", "x").exit_code == 1


def test_comparison_holds_figures_that_one_side_lacks(run):
    first = run.result(scalars={"a": Scalar(value=1.5, low=1.0, high=2.0, unit="bits")})
    rows = comparison(first, run.result())["figures"]
    assert rows[0]["second"] == "–"
    assert "1.5" in str(rows[0]["first"])
