"""The queue: its order, stops and resumes, and what it finds again after the server was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyloom.core import registry
from polyloom.core.errors import UserError
from polyloom.core.result import read_result
from polyloom.runs.folder import create_run, current_status, read_manifest
from polyloom.runs.index import record
from polyloom.web import jobs as jobs_module
from polyloom.web.jobs import Job, Jobs, _is_ours, holder, read_job
from tests import demo_room
from tests.demo_room import DemoConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Jobs]]:
    """Return a function that takes up the queue of one runs folder; what is at work in the end is ended."""
    monkeypatch.setattr(registry, "rooms", lambda: demo_room.CARDS)
    monkeypatch.setattr(jobs_module, "COMMAND", [sys.executable, "-m", "tests.demo_room"])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    monkeypatch.chdir(ROOT)
    root = tmp_path / "runs"
    yield lambda num_jobs=1: Jobs(root, num_jobs)
    for folder in root.glob("*/"):
        job = read_job(folder)
        if job and job.pid and _is_ours(job.pid, folder.name):
            os.kill(job.pid, signal.SIGKILL)


def until(jobs: Jobs, name: str, *wanted: str, seconds: float = 120) -> str:
    """Let the queue work until a run has one of the statuses, and return it."""
    folder = jobs.root / name
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        jobs.tick()
        status = jobs.status(name, current_status(folder, read_manifest(folder)))
        if status in wanted:
            return status
        time.sleep(0.05)
    raise AssertionError(f"{name} is {status}: {(folder / 'job.log').read_text()}")


def test_runs_wait_their_turn_and_are_done_in_order(make_jobs):
    jobs = make_jobs()
    first = jobs.create("demo.count", DemoConfig(num_steps=2, seconds=0.2))
    second = jobs.create("demo.count", DemoConfig(num_steps=1))
    assert jobs.waiting() == [second]
    assert until(jobs, second, "starting", "running") != "queued"
    assert read_manifest(jobs.root / first).status == "done"
    until(jobs, second, "done")
    assert read_result(jobs.root / first / "result.json").scalars["total"].value == 1
    assert not (jobs.root / first / "job.json").exists()
    assert "count: 2/2" in (jobs.root / first / "job.log").read_text()


def test_a_stopped_run_saves_and_a_resumed_one_goes_on(make_jobs):
    jobs = make_jobs()
    name = jobs.create("demo.count", DemoConfig(num_steps=40, seconds=0.2))
    until(jobs, name, "running")
    while not list((jobs.root / name / "steps").glob("*")):
        time.sleep(0.05)
    jobs.stop(name)
    assert jobs.status(name, "running") == "stopping"
    assert until(jobs, name, "stopped") == "stopped"
    kept = len(list((jobs.root / name / "steps").glob("*")))
    assert 1 <= kept < 40
    with pytest.raises(UserError):
        jobs.repeat("no-such")
    jobs.resume(name)
    with pytest.raises(UserError, match="at work"):
        jobs.resume(name)
    until(jobs, name, "running")
    jobs.stop(name, force=True)
    assert until(jobs, name, "stopped", "interrupted") == "stopped"
    assert len(list((jobs.root / name / "steps").glob("*"))) >= kept


def test_a_waiting_run_leaves_the_queue_and_can_be_deleted(make_jobs):
    jobs = make_jobs()
    first = jobs.create("demo.count", DemoConfig(num_steps=50, seconds=0.2))
    second = jobs.create("demo.count", DemoConfig())
    with pytest.raises(UserError, match="Stop it first"):
        jobs.delete(first)
    jobs.stop(second)
    assert read_manifest(jobs.root / second).status == "stopped"
    jobs.delete(second)
    assert not (jobs.root / second).exists()
    jobs.stop(first)
    until(jobs, first, "stopped")


def test_failed_refused_and_killed_runs_say_so_and_the_queue_goes_on(make_jobs):
    jobs = make_jobs(3)
    names = [jobs.create(f"demo.{verb}", DemoConfig()) for verb in ("fail", "refuse", "die")]
    statuses = [until(jobs, name, "failed", "interrupted") for name in names]
    assert statuses == ["failed", "failed", "interrupted"]
    assert read_manifest(jobs.root / names[0]).error == "a defect"
    assert jobs.at_work() == []
    again = jobs.repeat(names[0])
    assert again != names[0]
    assert until(jobs, again, "failed") == "failed"


def test_a_server_that_was_killed_finds_its_runs_again(make_jobs):
    jobs = make_jobs()
    first = jobs.create("demo.count", DemoConfig(num_steps=12, seconds=0.25))
    second = jobs.create("demo.count", DemoConfig(num_steps=1))
    third = jobs.create("demo.count", DemoConfig(num_steps=2))
    until(jobs, first, "running")
    # Nothing of the old queue is used any more, as after SIGKILL.
    process = jobs._working[first]
    assert process is not None
    restarted = make_jobs()
    assert restarted.at_work() == [first]
    assert restarted.waiting() == [second, third]
    assert holder(jobs.root / first) == process.pid
    process.wait(timeout=120)
    until(restarted, third, "done")
    assert [read_manifest(jobs.root / name).status for name in (first, second, third)] == ["done"] * 3


def test_a_run_that_died_with_the_machine_is_interrupted_and_can_be_resumed(make_jobs):
    jobs = make_jobs()
    name = jobs.create("demo.count", DemoConfig(kill_at=1))
    assert until(jobs, name, "interrupted") == "interrupted"
    # As if the server had died too: the file says that it was started, by a process whose number others have now.
    (jobs.root / name / "job.json").write_text(Job(state="started", since="2026", pid=1).model_dump_json())
    restarted = make_jobs()
    assert restarted.at_work() == []
    restarted.resume(name)
    assert until(restarted, name, "done") == "done"


def test_a_run_of_the_command_line_can_be_stopped_and_resumed_here(make_jobs):
    jobs = make_jobs()
    verb = demo_room.CARD.verb("count")
    run = create_run(jobs.root, "demo", verb, DemoConfig(num_steps=50, seconds=0.2), "outside")
    record(jobs.root, run.path, run.manifest)
    command = [*jobs_module.COMMAND, "runs", "resume", "outside", "--runs", str(jobs.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(jobs, "outside", "running")
        jobs.stop("outside")
        assert jobs.status("outside", "running") == "stopping"
        process.wait(timeout=60)
    assert until(jobs, "outside", "stopped") == "stopped"
    (run.path / "hold").touch()
    jobs.resume("outside")
    assert until(jobs, "outside", "running") == "running"
    jobs.stop("outside")
    assert until(jobs, "outside", "stopped") == "stopped"


def test_a_damaged_job_file_is_no_job(make_jobs):
    jobs = make_jobs()
    name = jobs.create("demo.count", DemoConfig())
    until(jobs, name, "done")
    for text in ("", "{", "[]", '{"state": "dancing", "since": ""}'):
        (jobs.root / name / "job.json").write_text(text)
        assert read_job(jobs.root / name) is None
        assert make_jobs().waiting() == []
