"""What pages know of runs: the run of a request, lists with the queue's own statuses, findings that are drawn once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from polyloom.core.errors import MissingExtra, PolyloomError
from polyloom.core.result import Result, read_result
from polyloom.reports.figures import figures_for
from polyloom.reports.html import render_findings
from polyloom.reports.svg import embed
from polyloom.runs.folder import Manifest, current_status, read_manifest
from polyloom.runs.index import Row, list_runs
from polyloom.web.jobs import LIVE, Jobs
from polyloom.web.security import confined
from polyloom.web.settings import Settings

MAX_DRAWN = 64
# matplotlib draws one figure at a time.
_drawing = threading.Lock()
_drawn: OrderedDict[tuple[str, int], _Drawing] = OrderedDict()


@dataclass(frozen=True)
class Seen:
    """A run as its page sees it."""

    folder: Path
    manifest: Manifest
    status: str

    @property
    def live(self) -> bool:
        """Whether it waits or is at work."""
        return self.status in LIVE


def jobs_of(request: Request) -> Jobs:
    """Return the queue."""
    jobs: Jobs = request.app.state.jobs
    return jobs


def runs_root(request: Request) -> Path:
    """Return the runs folder."""
    settings: Settings = request.app.state.settings
    return settings.runs


def see(request: Request, name: str) -> Seen:
    """Return the run that a request names.

    Raises:
        HTTPException: 404, there is no such run.
    """
    folder = confined(runs_root(request), name)
    if folder.parent != runs_root(request).resolve() or not (folder / "run.json").is_file():
        raise HTTPException(404)
    try:
        manifest = read_manifest(folder)
    except PolyloomError as error:
        raise HTTPException(409, str(error)) from error
    return Seen(folder, manifest, jobs_of(request).status(name, current_status(folder, manifest)))


def rows_of(request: Request) -> list[Row]:
    """Return all runs, newest first, with the statuses that the queue knows."""
    jobs = jobs_of(request)
    return [row._replace(status=jobs.status(row.id, row.status)) for row in list_runs(runs_root(request))]


def chosen(rows: list[Row], *, room: str = "", status: str = "", words: str = "", steps: bool = True) -> list[Row]:
    """Return some of the runs.

    Args:
        rows: the runs.
        room: only of this room.
        status: only of this status.
        words: only those whose name, room, verb, verdict or error hold this text.
        steps: also the steps of tours.
    """
    sought = words.strip().casefold()
    return [
        row
        for row in rows
        if (not room or row.room == room)
        and (not status or row.status == status)
        and (steps or not row.parent)
        and (not sought or sought in f"{row.id} {row.room} {row.verb} {row.verdict} {row.error or ''}".casefold())
    ]


def last_studies(rows: list[Row]) -> dict[str, Row]:
    """Return the newest study of each room that is done."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.status == "done" and row.verb == "study":
            found.setdefault(row.room, row)
    return found


def mark_of(rows: list[Row]) -> str:
    """Return a short mark of which runs there are and how they stand."""
    text = " ".join(f"{row.id}:{row.status}" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def children(request: Request, name: str) -> list[Row]:
    """Return the runs that are steps of a run, the oldest first."""
    return [row for row in reversed(rows_of(request)) if row.parent == name]


def result_of(folder: Path) -> Result | None:
    """Return a run's result, or None where there is none that can be read."""
    try:
        return read_result(folder / "result.json") if (folder / "result.json").exists() else None
    except PolyloomError:
        return None


@dataclass(frozen=True)
class Glance:
    """The first figure of a run's report, for a page that shows many runs."""

    run: str
    name: str
    svg: str


def findings(folder: Path) -> str:
    """Return what a run found as a part of a page, as its report shows it."""
    found = _drawing_of(folder)
    return found.findings if found else ""


def first_figure(folder: Path) -> Glance | None:
    """Return the first figure of a run's report, or None where it has none."""
    found = _drawing_of(folder)
    return found.glance if found else None


@dataclass(frozen=True)
class _Drawing:
    findings: str
    glance: Glance | None


def _drawing_of(folder: Path) -> _Drawing | None:
    """Draw a result, or take it from the last time where it is still the same file."""
    path = folder / "result.json"
    if not path.exists():
        return None
    key = (str(path), path.stat().st_mtime_ns)
    with _drawing:
        if key not in _drawn:
            _drawn[key] = _draw(read_result(path))
        _drawn.move_to_end(key)
        while len(_drawn) > MAX_DRAWN:
            _drawn.popitem(last=False)
        return _drawn[key]


def _draw(result: Result) -> _Drawing:
    try:
        figures = figures_for(result)
    except MissingExtra:
        return _Drawing(render_findings(result), None)
    if not figures:
        return _Drawing(render_findings(result, figures=[]), None)
    first = figures[0]
    svg = embed(first.svg, f"glance-{result.run}", first.name, first.description or first.caption)
    return _Drawing(render_findings(result, figures=figures), Glance(result.run, first.name, svg))
