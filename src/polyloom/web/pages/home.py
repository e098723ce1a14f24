"""The first page: what is at work, the rooms, and the newest runs."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from polyloom.core import registry
from polyloom.runs.index import Row
from polyloom.web.events import Snapshot
from polyloom.web.jobs import LIVE
from polyloom.web.live import Bar, read_log
from polyloom.web.looking import chosen, last_studies, mark_of, rows_of, runs_root
from polyloom.web.pages import Nav
from polyloom.web.templating import language_of, page, render

router = APIRouter()
NAV = (Nav("home", "/", 0),)
NUM_NEWEST = 8


@router.get("/")
def home(request: Request) -> Response:
    """Show the first page."""
    every = rows_of(request)
    rows = chosen(every, steps=False)
    last = last_studies(every)
    return page(
        request,
        "home.html.j2",
        tour=registry.card("tour"),
        rooms=list(registry.rooms().values()),
        last=last,
        newest_study=next(iter(last.values()), None),
        newest=rows[:NUM_NEWEST],
        num_runs=len(rows),
        strip=strip(request, rows),
        mark=mark_of(every),
    )


@router.get("/events")
async def events(request: Request, mark: Annotated[str, Query(max_length=64)] = "") -> Response:
    """Follow what waits and what is at work; `mark` is what the page shows already."""
    key = f"strip:{language_of(request)}"
    response: Response = request.app.state.hub.response(key, partial(strip_snapshot, request), mark)
    return response


def strip_snapshot(request: Request) -> Snapshot:
    """Return the strip of runs at work, and the mark of the lists, which changes when a run begins or ends."""
    rows = rows_of(request)
    return Snapshot({"strip": strip(request, rows)}, mark_of(rows))


def strip(request: Request, rows: list[Row]) -> str:
    """Render the strip of runs that wait or are at work."""
    live = [(row, _bar(request, row)) for row in rows if row.status in LIVE and not row.parent]
    return render(request, "strip.html.j2", live=live)


def _bar(request: Request, row: Row) -> Bar | None:
    bars, _ = read_log(runs_root(request) / row.id)
    return next((bar for bar in reversed(bars) if bar.done < bar.total), bars[-1] if bars else None)
