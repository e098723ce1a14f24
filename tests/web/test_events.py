"""Server-sent events: their form on the wire, one snapshot for all, an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from polyloom.web import events
from polyloom.web.events import Hub, Snapshot, event


def parse(data: bytes) -> tuple[str, str]:
    """Read one event as the standard says."""
    lines = data.decode().split("\n")
    name = next(line[7:] for line in lines if line.startswith("event: "))
    return name, "\n".join(line[6:] for line in lines if line.startswith("data: "))


@given(st.text(st.characters(blacklist_categories=("Cs",))))
def test_no_text_breaks_out_of_its_event(text):
    data = event("live", text)
    assert data.endswith(b"\n\n")
    assert data.count(b"\n\n") == 1
    assert parse(data) == ("live", text.replace("\r\n", "\n").replace("\r", "\n"))


async def collect(stream: AsyncIterator[bytes]) -> list[tuple[str, str]]:
    return [parse(data) async for data in stream if not data.startswith(b":")]


def test_twenty_followers_share_the_snapshots_and_see_only_what_changed(monkeypatch):
    monkeypatch.setattr(events, "PERIOD_SECONDS", 0.05)
    made = []

    def make() -> Snapshot:
        made.append(1)
        return Snapshot({"bars": str(len(made) // 3), "log": "same"}, ended=len(made) >= 8)

    async def follow_all() -> list[list[tuple[str, str]]]:
        hub = Hub()
        return await asyncio.gather(*(collect(hub.follow("run", make)) for _ in range(20)))

    for seen in asyncio.run(follow_all()):
        assert seen.count(("log", "same")) == 1
        assert seen[-1] == ("ended", "")
        bars = [text for name, text in seen if name == "bars"]
        assert len(bars) == len(set(bars))
    assert len(made) <= 12


def test_a_change_is_told_to_those_who_have_not_seen_it(monkeypatch):
    monkeypatch.setattr(events, "PERIOD_SECONDS", 0.02)
    marks = iter(["a", "a", "b", "b"])

    def make() -> Snapshot:
        mark = next(marks)
        return Snapshot({}, mark, ended=mark == "b")

    assert asyncio.run(collect(Hub().follow("list", make, "a"))) == [("changed", ""), ("ended", "")]
    assert asyncio.run(collect(Hub().follow("list", lambda: Snapshot(mark="b", ended=True), "b"))) == [("ended", "")]


def test_a_server_that_ends_ends_the_streams():
    async def close() -> list[tuple[str, str]]:
        hub = Hub()
        task = asyncio.create_task(collect(hub.follow("run", lambda: Snapshot({"a": "1"}))))
        await asyncio.sleep(0.1)
        hub.closing.set()
        return await asyncio.wait_for(task, 5)

    assert asyncio.run(close()) == [("a", "1")]


def test_old_snapshots_are_forgotten():
    async def many() -> int:
        hub = Hub()
        for number in range(events.MAX_KEPT + 50):
            await hub.snapshot(str(number), Snapshot)
        return len(hub._kept)

    assert asyncio.run(many()) == events.MAX_KEPT
