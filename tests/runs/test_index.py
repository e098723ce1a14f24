import json
import shutil
import sqlite3

import pytest

from polyloom.core import registry
from polyloom.core.errors import UserError
from polyloom.runs.execute import run_verb
from polyloom.runs.folder import create_run
from polyloom.runs.index import delete_run, find_run, list_runs, reindex
from tests import demo_room


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "rooms", lambda: {"demo": demo_room.CARD})
    for name in ("a", "b"):
        run_verb("demo.count", {"num_steps": 1}, runs=tmp_path, name=name)
    return tmp_path


def test_the_index_is_rebuilt_from_the_folders(runs):
    before = list_runs(runs)
    (runs / "index.sqlite3").unlink()
    assert list_runs(runs) == before
    assert reindex(runs) == 2


@pytest.mark.parametrize("damage", [b"not a database", b"SQLite format 3\0" + b"\0" * 200])
def test_a_corrupt_index_is_rebuilt(runs, damage):
    before = list_runs(runs)
    for path in runs.glob("index.sqlite3*"):
        path.unlink()
    (runs / "index.sqlite3").write_bytes(damage)
    assert list_runs(runs) == before


def test_an_index_of_another_version_is_rebuilt(runs):
    before = list_runs(runs)
    with sqlite3.connect(runs / "index.sqlite3") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    assert list_runs(runs) == before


def test_a_folder_removed_by_hand_is_not_listed_and_a_damaged_one_does_not_hide_the_rest(runs):
    shutil.rmtree(runs / "a")
    assert [row.id for row in list_runs(runs)] == ["b"]
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    assert reindex(runs) == 1


def test_find_by_name_path_and_last(runs):
    assert find_run(runs, "a") == runs / "a"
    assert find_run(runs, str(runs / "b")) == runs / "b"
    assert find_run(runs, "last").name == list_runs(runs)[0].id
    with pytest.raises(UserError, match="there is no run 'c'"):
        find_run(runs, "c")
    with pytest.raises(UserError, match="no runs yet"):
        find_run(runs / "none", "last")


def test_last_is_the_newest_run_that_is_no_step_of_another(runs):
    run_verb("demo.count", {"num_steps": 1}, runs=runs, name="step", parent="b")
    assert list_runs(runs)[0].id == "step"
    assert find_run(runs, "last").name == "b"


def test_delete_removes_folder_and_row_but_not_a_running_one(runs):
    delete_run(runs, runs / "a")
    assert [row.id for row in list_runs(runs)] == ["b"]
    verb = demo_room.CARD.verb("count")
    working = create_run(runs, "demo", verb, demo_room.DemoConfig(), name="w")
    with working.working(), pytest.raises(UserError, match="is running"):
        delete_run(runs, working.path)
    assert (runs / "w").exists()


def test_filters(runs):
    assert list_runs(runs, room="other") == []
    assert len(list_runs(runs, status="done")) == 2


def test_a_newer_run_is_left_out_of_the_index_and_named_when_opened(runs):
    path = runs / "a" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    assert reindex(runs) == 1
