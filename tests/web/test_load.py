"""Twenty browsers' worth of clients look on while a tour is at work: all are served, none waits long, nothing leaks."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path

import httpx
import pytest

from polyloom.core.result import read_result
from tests.web.conftest import Studio

NUM_CLIENTS = 20
# A page that takes longer is a hang on any machine; speed itself is measured in benchmarks/studio.md.
LONGEST_SECONDS = 60


def start_tour(studio: Studio) -> str:
    """Start a small tour as a page does, and return the run's address."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    page = opener.open(f"{studio.url}/start/tour/run").read().decode()
    fields = [("csrf", page.split('X-CSRF-Token": "')[1].split('"')[0]), ("profile", "quick"), ("encoding", "utf-8")]
    fields += [("languages", "en\r\nja"), ("rooms", "demo"), ("seed", "0")]
    with opener.open(f"{studio.url}/start/tour/run", urllib.parse.urlencode(fields).encode()) as response:
        address: str = response.url
    return address


async def follow(client: httpx.AsyncClient, address: str) -> list[str]:
    """Read a stream of events to its end, and return their names."""
    names = []
    async with client.stream("GET", f"{address}/events") as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
    return names


async def visit(client: httpx.AsyncClient, paths: list[str], end: asyncio.Event) -> list[float]:
    """Open pages in turn until the end, and return how long each took."""
    taken = []
    while not end.is_set():
        for path in paths:
            begun = time.monotonic()
            response = await client.get(path)
            assert response.status_code == 200, path
            taken.append(time.monotonic() - begun)
        await asyncio.sleep(1)
    return taken


async def look_on(studio: Studio, address: str) -> tuple[list[list[str]], list[float]]:
    end = asyncio.Event()
    paths = ["/", "/runs", urllib.parse.urlparse(address).path, "/rooms"]
    # As browsers do, a client leaves a connection alone that the server is about to close (after five idle seconds).
    limits = httpx.Limits(keepalive_expiry=2)
    clients = [
        httpx.AsyncClient(base_url=studio.url, timeout=LONGEST_SECONDS, trust_env=False, limits=limits)
        for _ in range(NUM_CLIENTS)
    ]
    visits = [asyncio.create_task(visit(client, paths, end)) for client in clients]
    streams = await asyncio.wait_for(asyncio.gather(*(follow(client, address) for client in clients)), 400)
    end.set()
    taken = [seconds for one in await asyncio.gather(*visits) for seconds in one]
    for client in clients:
        await client.aclose()
    return streams, taken


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
def test_twenty_clients_look_on_while_a_tour_is_at_work(start_studio: Callable[..., Studio]) -> None:
    studio = start_studio(module="tests.demo_room")
    assert studio.process is not None
    before = open_files(studio.process.pid)
    address = start_tour(studio)
    streams, taken = asyncio.run(look_on(studio, address))
    folder = studio.runs / address.rpartition("/")[2]
    assert json.loads((folder / "run.json").read_text())["status"] == "done", (folder / "job.log").read_text()
    assert read_result(folder / "result.json").scalars["failed_steps"].value == 0
    for names in streams:
        assert names[-1] == "ended"
        assert {"status", "bars"} <= set(names)
    assert len(taken) >= NUM_CLIENTS * 4
    assert max(taken) < LONGEST_SECONDS
    deadline = time.monotonic() + 30
    while open_files(studio.process.pid) > before + 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert open_files(studio.process.pid) <= before + 8
    assert "Traceback" not in studio.log
