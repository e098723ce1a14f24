from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyloom.core.errors import UserError
from polyloom.runs import store as store_module
from polyloom.runs.store import Conflict, EventStore, Stream, place, refuse_unseen

HOSTILE = "<script>alert(1)</script>'; DROP TABLE entries; -- %s ? {x} \U0001f600 \u202e"
STREAM = Stream("c", "item", "ann")


def test_what_was_appended_is_there_in_order(store_target: str) -> None:
    store = EventStore(store_target)
    store.add_collection("c", "kind", HOSTILE, {"from": "here"}, [("item", {"text": HOSTILE}), (HOSTILE, [1])])
    first = store.append(STREAM, "label", {"value": 1, "note": "a\0b"})
    second = store.append(STREAM, "label", {"value": 0})
    other = store.append(Stream("c", "item", HOSTILE), HOSTILE, {HOSTILE: HOSTILE})
    again = EventStore(store_target)
    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert again.entries("c") == [first, second, other]
    assert again.entries("c", author=HOSTILE)[0].body == {HOSTILE: HOSTILE}
    assert again.entries("c", "item", "ann")[0].body["note"] == "a\0b"
    assert again.names("c") == ["item", HOSTILE]
    assert again.item("c", "item") == {"text": HOSTILE}
    assert again.items("c")[1] == (HOSTILE, [1])
    assert again.collections("kind")[0] == again.collection("c", "kind")
    assert again.collection("c", "kind").title == HOSTILE
    assert again.entries("nobody's") == again.collections("other") == []
    with pytest.raises(UserError, match="no collection"):
        again.collection("c", "other")
    with pytest.raises(UserError, match="no item"):
        again.item("c", "absent")


def test_unseen_events_are_a_conflict_and_a_repeated_request_is_none(store_target: str) -> None:
    store = EventStore(store_target)

    def send(value: int, seen: int, token: str) -> int:
        check = lambda entries: refuse_unseen(entries, seen)  # noqa: E731
        return store.append(STREAM, "label", {"value": value}, token=token, check=check).version

    assert send(1, 0, "a") == 1
    assert send(1, 0, "a") == 1
    with pytest.raises(Conflict) as caught:
        send(2, 0, "b")
    assert [entry.body for entry in caught.value.unseen] == [{"value": 1}]
    assert send(2, 1, "b") == 2
    assert len(store.entries("c")) == 2


def test_many_writers_lose_nothing(store_target: str) -> None:
    store = EventStore(store_target)

    def write(author: int) -> None:
        for number in range(10):
            store.append(Stream("c", "item", f"author {author % 3}"), "n", {"by": author, "n": number})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    entries = store.entries("c")
    assert {(e.body["by"], e.body["n"]) for e in entries} == {(a, n) for a in range(6) for n in range(10)}
    for author in range(3):
        versions = [e.version for e in entries if e.stream.author == f"author {author}"]
        assert versions == list(range(1, 21))


def test_a_store_of_the_first_version_is_brought_up_to_date(store_target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", store_module.MIGRATIONS[:1])
        old = EventStore(store_target)
        with old._transaction(write=True) as execute:
            execute(
                "INSERT INTO entries (time, collection, item, author, version, kind, body)"
                " VALUES (1, 'c', 'item', 'ann', 1, 'label', '{}')",
                (),
            )
    new = EventStore(store_target)
    assert new.append(STREAM, "label", {}, token="t").version == 2
    assert EventStore(store_target).entries("c")[0].time == 1
    monkeypatch.setattr(store_module, "MIGRATIONS", store_module.MIGRATIONS[:1])
    with pytest.raises(UserError, match="newer Polyloom"):
        EventStore(store_target)


def _append_for_ever(path: str, told: Path) -> None:
    store = EventStore(path)
    for number in range(10_000):
        store.append(STREAM, "n", {"n": number})
        told.write_text(str(number))


def test_what_append_returned_for_survives_a_kill(tmp_path: Path) -> None:
    told, path = tmp_path / "told", str(tmp_path / "s.sqlite3")
    worker = multiprocessing.get_context("spawn").Process(target=_append_for_ever, args=(path, told))
    worker.start()
    while not told.exists() or int(told.read_text() or 0) < 20:
        assert worker.is_alive()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    found = [entry.body["n"] for entry in EventStore(path).entries("c")]
    assert found == list(range(len(found)))
    assert len(found) > int(told.read_text() or 20)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_bad_places_and_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(UserError, match="no store"):
        EventStore(tmp_path / "text")
    with pytest.raises(UserError, match="no store"):
        EventStore("mysql://somebody:secret@host/x")
    store = EventStore(tmp_path / "s.sqlite3")
    for name in ("a\0b", "\ud800", "x" * 501):
        with pytest.raises(UserError):
            store.append(Stream("c", name, "ann"), "n", {})
    with pytest.raises(UserError, match="share a name"):
        store.add_collection("c", "kind", "title", {}, [("a", 1), ("a", 2)])


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    address = "postgresql://me:secret@127.0.0.1:1/team"
    assert place(address) == "postgresql://127.0.0.1/team"
    with pytest.raises(UserError, match="does not answer") as caught:
        EventStore(address)
    assert "secret" not in str(caught.value)
