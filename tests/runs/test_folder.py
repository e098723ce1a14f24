import json
import os
import signal

import pytest

from polyloom.core.config import Config
from polyloom.core.errors import Stopped, UserError
from polyloom.core.registry import Verb
from polyloom.runs.folder import create_run, current_status, open_run, read_manifest

VERB = Verb("verb", "", "polyloom.core.config:Config", "tests.conftest:empty_run")


def test_a_name_that_is_taken_or_no_name_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"exists.*resume test-run"):
        create_run(tmp_path / "runs", "room", VERB, Config(), name="test-run")
    for name in ("../x", "a/b", ".hidden", "-x"):
        with pytest.raises(UserError, match="no run name"):
            create_run(tmp_path / "runs", "room", VERB, Config(), name=name)


def test_two_runs_of_one_second_have_two_names(tmp_path):
    runs = [create_run(tmp_path, "room", VERB, Config()) for _ in range(3)]
    assert len({run.id for run in runs}) == 3


def test_once_computes_once_and_gives_json_values_the_first_time_too(run):
    calls = []

    def compute():
        calls.append(1)
        return {"pair": (1, 2), 3: float("nan")}

    first = run.once("a step/with: odd characters", compute)
    again = run.once("a step/with: odd characters", compute)
    assert calls == [1]
    assert first["pair"] == again["pair"] == [1, 2]
    assert list(first) == list(again) == ["pair", "3"]


def test_once_keeps_steps_with_like_names_apart(run):
    assert [run.once(name, lambda name=name: name) for name in ("a b", "a-b", "a/b")] == ["a b", "a-b", "a/b"]


def test_open_run_has_the_config_it_was_made_with(tmp_path):
    made = create_run(tmp_path, "room", VERB, Config(seed=5), name="x")
    assert open_run(made.path, VERB).config == Config(seed=5)


def test_log_appends_lines_and_a_torn_last_line_is_dropped(run):
    run.log(step=1, loss=0.5)
    run.log(step=2, loss=float("nan"))
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert [(line["step"], line["loss"]) for line in run.metrics()] == [(1, 0.5), (2, None)]
    with run.working():
        run.log(step=3, loss=0.25)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_safe_point_after_saving(run, number):
    with run.working(), pytest.raises(Stopped, match="runs resume test-run"):
        run.once("first", lambda: os.kill(os.getpid(), number))
    assert len(list((run.path / "steps").iterdir())) == 1
    assert signal.getsignal(number) is not run._on_signal


def test_status_is_interrupted_when_nobody_holds_the_lock(run):
    assert current_status(run.path, read_manifest(run.path)) == "interrupted"
    with run.working():
        assert current_status(run.path, read_manifest(run.path)) == "running"
    run.set_status("done")
    assert current_status(run.path, read_manifest(run.path)) == "done"


def test_a_second_worker_is_refused(run):
    with run.working(), pytest.raises(UserError, match="in use by process"), run.working():
        pass


def test_a_run_of_a_newer_polyloom_and_a_damaged_one_are_refused(run):
    path = run.path / "run.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(UserError, match="newer Polyloom"):
        read_manifest(run.path)
    path.write_text(json.dumps({"id": 3}))
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(run.path)


def test_times_add_up_over_sessions(run):
    run.set_status("stopped")
    elapsed, cpu = run.manifest.elapsed_seconds, run.manifest.cpu_seconds
    again = open_run(run.path, VERB)
    assert again.times()[0] >= elapsed
    assert again.times()[1] >= cpu


def test_provenance_names_no_path_of_the_machine(run):
    text = run.result().model_dump_json()
    assert str(run.path) not in text
    assert os.path.expanduser("~") not in text
    assert json.loads(text)["provenance"]["versions"]["polyloom"]
