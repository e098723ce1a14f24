"""Runs: the list, one run while it is at work and when it is done, and what can be done with it."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core import registry
from polyloom.core.errors import PolyloomError
from polyloom.core.files import read_text
from polyloom.reports.commands import find_card, repeat_commands
from polyloom.web.events import Snapshot
from polyloom.web.jobs import read_job
from polyloom.web.live import HEIGHT, WIDTH, read_curves, read_log
from polyloom.web.looking import Seen, children, chosen, findings, jobs_of, mark_of, result_of, rows_of, see
from polyloom.web.pages import Nav
from polyloom.web.pages.files import files_of
from polyloom.web.templating import language_of, page, render, say

router = APIRouter()
NAV = (Nav("runs", "/runs", 10),)
PAGE_LENGTH = 40
STATUSES = ("queued", "running", "done", "failed", "stopped", "interrupted")
ShortText = Annotated[str, Query(max_length=200)]


@router.get("/runs")
def list_all(
    request: Request,
    room: ShortText = "",
    status: ShortText = "",
    q: ShortText = "",
    steps: bool = False,
    number: Annotated[int, Query(ge=1, le=1_000_000, alias="page")] = 1,
) -> Response:
    """List the runs, newest first."""
    every = rows_of(request)
    rows = chosen(every, room=room, status=status, words=q, steps=steps)
    num_pages = max(1, -(-len(rows) // PAGE_LENGTH))
    number = min(number, num_pages)
    given = {"room": room, "status": status, "q": q, "steps": "true" if steps else ""}
    kept = urlencode({name: value for name, value in given.items() if value})
    return page(
        request,
        "runs/list.html.j2",
        rows=rows[(number - 1) * PAGE_LENGTH : number * PAGE_LENGTH],
        num_rows=len(rows),
        number=number,
        num_pages=num_pages,
        address=f"/runs?{kept}{'&' if kept else ''}page=",
        given={**given, "steps": steps},
        room_names=["tour", *registry.rooms()],
        statuses=STATUSES,
        mark=mark_of(every),
    )


@router.get("/runs/{name}")
def show(request: Request, name: str) -> Response:
    """Show a run: its findings when it is done, what it does while it is at work, else why it ended."""
    seen = see(request, name)
    result = result_of(seen.folder)
    room = find_card(seen.manifest.room)
    values: dict[str, Any] = {
        "seen": seen,
        "result": result,
        "room": room,
        "live": live_parts(request, seen) if seen.live else {},
        "log": read_log(seen.folder)[1],
        "curves": None if seen.live or result else curves(request, seen),
        "config": read_text(seen.folder / "config.yaml") if (seen.folder / "config.yaml").exists() else "",
        "commands": repeat_commands(result) if result else [],
        "findings": findings(seen.folder) if result and not seen.live else "",
        "files": files_of(seen.folder),
        "steps": children(request, name),
        "has_report": (seen.folder / "report.html").is_file(),
    }
    return page(request, "runs/run.html.j2", **values)


@router.get("/runs/{name}/report")
def report(request: Request, name: str) -> Response:
    """Show a run's report in a frame of its own, in which nothing acts."""
    return page(request, "runs/report.html.j2", seen=see(request, name))


@router.get("/runs/{name}/events")
async def events(request: Request, name: str) -> Response:
    """Follow a run while it is at work."""
    see(request, name)
    key = f"run:{name}:{language_of(request)}"
    response: Response = request.app.state.hub.response(key, partial(snapshot, request, name))
    return response


def snapshot(request: Request, name: str) -> Snapshot:
    """Return what the page of a run shows while it is at work."""
    try:
        seen = see(request, name)
    except Exception:  # Deleted while somebody looks.
        return Snapshot(ended=True)
    return Snapshot(live_parts(request, seen), ended=not seen.live)


def live_parts(request: Request, seen: Seen) -> dict[str, str]:
    """Render the parts of a run's page that change while it is at work, by the names of their events."""
    bars, lines = read_log(seen.folder)
    waiting = jobs_of(request).waiting()
    place = waiting.index(seen.folder.name) + 1 if seen.folder.name in waiting else 0
    return {
        "status": render(request, "runs/status.html.j2", status=seen.status, place=place, elapsed=elapsed(seen)),
        "bars": render(request, "runs/bars.html.j2", bars=bars, rows=children(request, seen.folder.name)),
        "curves": curves(request, seen),
        "log": render(request, "runs/log.html.j2", lines=lines),
    }


def curves(request: Request, seen: Seen) -> str:
    """Render the curves of what a run logged."""
    return render(request, "runs/curves.html.j2", curves=read_curves(seen.folder), width=WIDTH, height=HEIGHT)


def elapsed(seen: Seen) -> str:
    """Return how long ago a run was begun or went on, in words."""
    job = read_job(seen.folder)
    try:
        begun = datetime.fromisoformat(job.since if job else seen.manifest.created)
        seconds = max(0, int((datetime.now(begun.tzinfo) - begun).total_seconds()))
    except (ValueError, TypeError):
        return ""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@router.post("/runs/{name}/{action}")
def act(request: Request, name: str, action: str, back: Annotated[str, Form(max_length=20)] = "") -> Response:
    """Stop, end, resume, repeat or delete a run."""
    see(request, name)
    jobs = jobs_of(request)
    to = f"/runs/{name}"
    try:
        if action in ("stop", "end"):
            jobs.stop(name, force=action == "end")
        elif action == "resume":
            jobs.resume(name)
        elif action == "repeat":
            to = f"/runs/{jobs.repeat(name)}"
        elif action == "delete":
            jobs.delete(name)
            to = "/runs"
        else:
            return page(request, "error.html.j2", 404, title=say(request, "error.404"), detail=action)
    except PolyloomError as refused:
        values = {"title": say(request, "error.other"), "detail": str(refused)}
        return page(request, "error.html.j2", 409, **values)
    return RedirectResponse("/" if back == "home" else to, 303)
