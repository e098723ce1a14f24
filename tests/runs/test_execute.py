import json
import signal
import subprocess
import sys
import time

import pytest

import polyloom
from polyloom.core import registry
from polyloom.core.errors import PolyloomError, Stopped, UserError
from polyloom.core.result import read_result
from polyloom.runs.execute import resume, run_verb
from polyloom.runs.folder import read_manifest
from polyloom.runs.index import list_runs
from tests import demo_room


@pytest.fixture(autouse=True)
def demo(monkeypatch):
    monkeypatch.setattr(registry, "rooms", lambda: {"demo": demo_room.CARD})


def command(tmp_path, *words):
    arguments = [sys.executable, "-m", "tests.demo_room", *map(str, words), "--runs", str(tmp_path)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_leaves_config_result_report_and_a_row(tmp_path):
    result = run_verb("demo.count", {"num_steps": 4}, runs=tmp_path, name="x")
    assert result.scalars["total"].value == 6
    assert read_result(tmp_path / "x" / "result.json") == result
    assert "counted to 4" in (tmp_path / "x" / "report.html").read_text()
    assert "num_steps: 4" in (tmp_path / "x" / "config.yaml").read_text()
    row = list_runs(tmp_path)[0]
    assert (row.id, row.status, row.verdict) == ("x", "done", "counted to 4")


def test_the_python_door_is_the_same_path(tmp_path):
    result = polyloom.run("demo.count", runs=tmp_path, run_name="x", num_steps=2)
    assert read_result(tmp_path / "x" / "result.json") == result
    with pytest.raises(UserError, match=r"unknown key 'steps'"):
        polyloom.run("demo.count", runs=tmp_path, steps=2)


def test_equal_configs_give_equal_results_apart_from_times_and_names(tmp_path):
    first, second = (run_verb("demo.count", {"num_steps": 3}, runs=tmp_path) for _ in range(2))
    assert first.model_dump(exclude={"run", "provenance"}) == second.model_dump(exclude={"run", "provenance"})


def test_refused_input_leaves_nothing_and_a_defect_leaves_a_resumable_run(tmp_path):
    with pytest.raises(UserError, match="is no model"):
        run_verb("demo.refuse", {"model": "m"}, runs=tmp_path, name="x")
    assert not (tmp_path / "x").exists()
    assert list_runs(tmp_path) == []
    with pytest.raises(ZeroDivisionError):
        run_verb("demo.fail", {}, runs=tmp_path, name="y")
    assert read_manifest(tmp_path / "y").status == "failed"
    assert list_runs(tmp_path)[0].error == "a defect"


def test_resume_of_a_done_run_gives_its_stored_result(tmp_path):
    result = run_verb("demo.count", {}, runs=tmp_path, name="x")
    assert resume(tmp_path / "x") == result


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_a_killed_run_resumes_and_loses_only_the_current_step(tmp_path, kill_at):
    process = command(tmp_path, "demo", "count", "--run", "x", "--kill-at", kill_at)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list_runs(tmp_path)[0].status == "interrupted"
    assert resume(tmp_path / "x").scalars["total"].value == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(kill_at + 1), *range(kill_at, 3)]


def test_sigterm_finishes_the_step_saves_and_exits_75(tmp_path):
    process = command(tmp_path, "demo", "count", "--run", "x", "--num-steps", 50, "--seconds", 0.2)
    while not (tmp_path / "x" / "steps").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert stderr.splitlines()[-1] == "polyloom: x: stopped on request. Resume with: polyloom runs resume x"
    assert read_manifest(tmp_path / "x").status == "stopped"
    num_done = len(list((tmp_path / "x" / "steps").iterdir()))
    assert 1 <= num_done < 50


def test_two_processes_resuming_one_run_are_kept_apart(tmp_path):
    process = command(tmp_path, "demo", "count", "--run", "x", "--num-steps", 100, "--seconds", 0.2)
    while not (tmp_path / "x" / "steps").exists():
        assert process.poll() is None
        time.sleep(0.05)
    try:
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            resume(tmp_path / "x")
        assert read_manifest(tmp_path / "x").status == "running"
    finally:
        process.kill()
        process.communicate()


def test_a_report_that_cannot_be_drawn_does_not_undo_the_work(tmp_path, monkeypatch):
    import polyloom.reports.html

    def broken(result):
        raise ZeroDivisionError("a defect in a figure")

    monkeypatch.setattr(polyloom.reports.html, "render_html", broken)
    with pytest.raises(ZeroDivisionError):
        run_verb("demo.count", {}, runs=tmp_path, name="x")
    assert read_manifest(tmp_path / "x").status == "done"
    assert resume(tmp_path / "x").scalars["total"].value == 3


def test_every_error_of_a_verb_is_a_polyloom_error_or_a_defect():
    assert issubclass(Stopped, PolyloomError)
    with pytest.raises(UserError, match=r"there is no room 'demi'\. Did you mean 'demo'"):
        run_verb("demi.count")
