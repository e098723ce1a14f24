"""Rooms: what each asks, what computes its equations, and what it found last."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polyloom.core import registry
from polyloom.runs.index import Row
from polyloom.web.looking import chosen, first_figure, last_studies, result_of, rows_of, runs_root
from polyloom.web.pages import Nav
from polyloom.web.templating import page

router = APIRouter()
NAV = (Nav("rooms", "/rooms", 20),)
NUM_RUNS = 8


@router.get("/rooms")
def list_rooms(request: Request) -> Response:
    """Show all rooms."""
    last = last_studies(rows_of(request))
    return page(request, "rooms/list.html.j2", rooms=list(registry.rooms().values()), last=last)


@router.get("/rooms/{name}/figure")
def figure(request: Request, name: str) -> Response:
    """Give the first figure of a room's last study as a part of a page; pages ask for it when it comes into sight."""
    done = _last_study(chosen(rows_of(request), room=name))
    return page(request, "rooms/figure.html.j2", figure=first_figure(runs_root(request) / done.id) if done else None)


def _last_study(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row.status == "done" and row.verb in ("study", "run")), None)


@router.get("/rooms/{name}")
def show(request: Request, name: str) -> Response:
    """Show a room."""
    if name != "tour" and name not in registry.rooms():
        raise HTTPException(404)
    rows = chosen(rows_of(request), room=name)
    done = _last_study(rows)
    result = result_of(runs_root(request) / done.id) if done else None
    return page(
        request,
        "rooms/room.html.j2",
        room=registry.card(name),
        rows=rows[:NUM_RUNS],
        done=done,
        result=result,
        figure=first_figure(runs_root(request) / done.id) if done and result else None,
    )
