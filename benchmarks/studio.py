"""What the studio's pages cost with many runs in the index, beside a bare Starlette route that sends the same bytes.

Run `python benchmarks/studio.py [--runs 1000] [--output benchmarks/studio.md]`. Requests go through the whole
application in this process, without a socket, in interleaved rounds; times are CPU seconds of this process. Bytes are
those of the page and of every file that it loads, uncompressed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from polyloom.core.files import write_text
from polyloom.core.registry import card
from polyloom.core.result import Scalar
from polyloom.runs.folder import create_run
from polyloom.runs.index import reindex
from polyloom.web import Settings, create_app

PAGES = ("/", "/runs", "/runs?q=verdict&page=3", "/rooms", "/rooms/silu", "/start/redteam/attack", "/runs/run-0")
HOST = "http://127.0.0.1:8321"


def fill(root: Path, num_runs: int) -> None:
    """Make many run folders that are done, and their index."""
    verb = card("silu").verb("facts")
    run = create_run(root, "silu", verb, verb.load_config()(), "run-0")
    verdicts = ["A verdict as long as verdicts are: against relu, silu is better on text, undecided on digits."]
    result = run.result(verdicts=verdicts, scalars={"minimum_value": Scalar(value=-0.278)})
    write_text(run.path / "result.json", result.model_dump_json())
    run.set_status("done")
    manifest = json.loads((run.path / "run.json").read_text())
    for number in range(1, num_runs):
        folder = root / f"run-{number}"
        shutil.copytree(run.path, folder)
        write_text(folder / "run.json", json.dumps({**manifest, "id": folder.name}))
    reindex(root)


def bare(pages: dict[str, bytes]) -> Starlette:
    """Return an application that only sends bytes that it has."""

    async def send(request: Request) -> Response:
        return HTMLResponse(pages[str(request.url).removeprefix(HOST)])

    return Starlette(routes=[Route("/{path:path}", send)])


def client(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HOST)  # type: ignore[arg-type]


async def load_bytes(ours: httpx.AsyncClient, path: str) -> tuple[bytes, int]:
    """Return a page, and the bytes of the files that it loads."""
    html = (await ours.get(path)).raise_for_status().content
    names = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html.decode()))
    return html, sum([len((await ours.get(name)).content) for name in names])


async def measure(root: Path, rounds: int) -> list[list[str]]:
    """Return a row a page: its bytes, CPU times and the ratio to the bare route."""
    ours = client(create_app(Settings(runs=root)))
    found = {path: await load_bytes(ours, path) for path in PAGES}
    peer = client(bare({path: html for path, (html, _) in found.items()}))
    seconds: dict[str, list[float]] = {path: [] for path in PAGES}
    floor: dict[str, list[float]] = {path: [] for path in PAGES}
    for _ in range(rounds):
        for path in PAGES:
            for one, times in ((ours, seconds[path]), (peer, floor[path])):
                begun = time.process_time()
                (await one.get(path)).raise_for_status()
                times.append(time.process_time() - begun)
    rows = []
    for path, (html, rest) in found.items():
        times = sorted(seconds[path])
        ratio = statistics.median(a / b for a, b in zip(seconds[path], floor[path], strict=True))
        rows.append(
            [
                f"`{path}`",
                f"{(len(html) + rest) / 1000:.0f} kB",
                f"{len(html) / 1000:.1f} kB",
                f"{statistics.median(times) * 1000:.1f}",
                f"{times[int(0.95 * (len(times) - 1))] * 1000:.1f}",
                f"{ratio:.1f}",
            ]
        )
    return rows


def report(num_runs: int, rounds: int, rows: list[list[str]]) -> str:
    head = [
        "page",
        "with all it loads",
        "page alone",
        "CPU ms, median",
        "CPU ms, 95th percentile",
        "ratio to a bare route",
    ]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"# The studio: what a page costs with {num_runs:,} runs in the index\n\n"
        f"Written by `python benchmarks/studio.py`: {platform.machine()}, Python {platform.python_version()}, "
        f"{rounds} interleaved rounds in one process, CPU time of the whole application without a socket. The bare "
        "route sends the same bytes from memory through Starlette, which is the least that any page costs.\n\n"
        f"{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), given.runs)
        text = report(given.runs, given.rounds, asyncio.run(measure(Path(folder), given.rounds)))
    print(text)
    if given.output:
        write_text(given.output, text)


if __name__ == "__main__":
    main()
