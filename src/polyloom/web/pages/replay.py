"""Replay: a run of the commons month by month, every prompt and reply, and branching from any month."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core.config import make_config, read_yaml
from polyloom.core.errors import UserError
from polyloom.core.result import read_result
from polyloom.methods.commons.config import BranchConfig
from polyloom.methods.commons.events import read_events, split_runs
from polyloom.methods.commons.logs import LoggedRun, from_events
from polyloom.methods.commons.policies import PLAIN
from polyloom.methods.commons.scoring import ETHICS
from polyloom.methods.commons.story import Chapter, Story, tell
from polyloom.runs.index import list_runs
from polyloom.web.looking import Seen, jobs_of, runs_root, see
from polyloom.web.pages import Nav
from polyloom.web.stock_chart import HEIGHT, NUM_COLOURS, WIDTH, draw
from polyloom.web.templating import page, say

router = APIRouter()
NAV = (Nav("replay", "/replay", 50),)
EVENTS = "artifacts/events.jsonl"
MAX_BYTES = 200 * 2**20
MAX_SHOWN = 500


@lru_cache(maxsize=4)
def _runs_of(path: Path, changed: int, size: int) -> list[list[Any]]:
    """Return the runs of a log; read again when the file has changed."""
    return split_runs(read_events(path))


def _log(request: Request, folder: Path) -> list[list[Any]]:
    path = folder / EVENTS
    if not path.is_file():
        raise HTTPException(404)
    about = path.stat()
    if about.st_size > MAX_BYTES:
        raise UserError(say(request, "replay.too_long"), where=folder.name)
    return _runs_of(path, about.st_mtime_ns, about.st_size)


@router.get("/replay")
def list_logs(request: Request) -> Response:
    """Show which runs can be replayed."""
    root = runs_root(request)
    rows = [row for row in list_runs(root, room="commons") if (root / row.id / EVENTS).is_file()]
    return page(request, "replay/list.html.j2", rows=rows)


@router.get("/replay/{run}")
def show_log(request: Request, run: str) -> Response:
    """Show the runs of a log, or that it is still being played."""
    seen = see(request, run)
    if not (seen.folder / EVENTS).is_file():
        return page(request, "replay/waiting.html.j2", run=run, seen=seen)
    runs = _log(request, seen.folder)
    if len(runs) == 1:
        branched = _branched_from(seen)
        return RedirectResponse(f"/replay/{run}/0/{branched['month'] if branched else 1}", 303)
    told: list[LoggedRun] = [from_events(events, str(number)) for number, events in enumerate(runs[:MAX_SHOWN])]
    return page(request, "replay/runs.html.j2", run=run, told=told, num_runs=len(runs))


@router.get("/replay/{run}/ready")
def is_ready(request: Request, run: str) -> Response:
    """Tell a waiting page to go on once the log is there or the run has ended."""
    seen = see(request, run)
    if (seen.folder / EVENTS).is_file():
        return Response(status_code=204, headers={"HX-Redirect": f"/replay/{run}"})
    return Response(status_code=204, headers={} if seen.live else {"HX-Redirect": f"/runs/{run}"})


def _story(request: Request, run: str, number: int, month: int) -> tuple[Seen, Story, Chapter]:
    seen = see(request, run)
    runs = _log(request, seen.folder)
    if not 0 <= number < len(runs):
        raise HTTPException(404)
    story = tell(runs[number])
    if not 1 <= month <= len(story.chapters):
        raise HTTPException(404)
    return seen, story, story.chapters[month - 1]


@router.get("/replay/{run}/{number}/{month}")
def show_month(request: Request, run: str, number: int, month: int) -> Response:
    """Show a month of a run."""
    seen, story, chapter = _story(request, run, number, month)
    return page(
        request,
        "replay/month.html.j2",
        run=run,
        number=number,
        story=story,
        chapter=chapter,
        chart=draw(story, _before_branch(seen)),
        size=(WIDTH, HEIGHT),
        colour=lambda agent: agent % NUM_COLOURS + 1,
        policies=sorted(PLAIN),
        branched=_branched_from(seen),
        ethics=ETHICS,
    )


@router.get("/replay/{run}/{number}/{month}/calls/{index}")
def show_call(request: Request, run: str, number: int, month: int, index: int) -> Response:
    """Show one prompt and its reply."""
    _, _, chapter = _story(request, run, number, month)
    if not 0 <= index < len(chapter.calls):
        raise HTTPException(404)
    return page(request, "replay/call.html.j2", call=chapter.calls[index])


@router.post("/replay/{run}/{number}/{month}/branch")
async def branch(request: Request, run: str, number: int, month: int) -> Response:
    """Queue a branch from a month with changed asks or other minds, and show it when it has been played."""
    return await run_in_threadpool(_branch, request, run, number, month, await request.form())


def _branch(request: Request, run: str, number: int, month: int, form: FormData) -> Response:
    seen, story, _ = _story(request, run, number, month)
    entered = {agent: str(form.get(f"ask-{index}", "")).strip() for index, agent in enumerate(story.start.agents)}
    if wrong := [amount for amount in entered.values() if amount and not amount.isdecimal()]:
        raise UserError(say(request, "replay.no_amount", amount=wrong[0][:40]))
    asks = [f"{agent}={amount}" for agent, amount in entered.items() if amount]
    minds = str(form.get("minds", "")).split()
    log = (seen.folder / EVENTS).as_posix()
    config = make_config(BranchConfig, {"log": log, "run_number": number, "month": month, "ask": asks, "minds": minds})
    return RedirectResponse(f"/replay/{jobs_of(request).create('commons.branch', config)}", 303)


def _before_branch(seen: Seen) -> list[float | None]:
    """Return the stock of the run that a branch went off from, from the branch's own result."""
    path = seen.folder / "result.json"
    if seen.manifest.verb != "branch" or not path.is_file():
        return []
    series = read_result(path).series.get("log")
    return list(series.y) if series else []


def _branched_from(seen: Seen) -> dict[str, Any] | None:
    """Return what a branch changed: the other run where it is in this runs folder, its month, its asks and minds."""
    if seen.manifest.verb != "branch":
        return None
    config = read_yaml(seen.folder / "config.yaml")
    origin = Path(str(config.get("log", "")))
    here = origin.name == Path(EVENTS).name and (seen.folder.parent / origin.parent.parent.name / EVENTS).is_file()
    return {
        "run": origin.parent.parent.name if here else "",
        "number": config.get("run_number", 0),
        "month": config.get("month", 1),
        "ask": config.get("ask") or [],
        "minds": config.get("minds") or [],
    }
