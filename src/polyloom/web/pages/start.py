"""Starting a verb: its form, made from its configuration, and the quick run of a room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core.config import read_yaml
from polyloom.core.errors import PolyloomError
from polyloom.core.registry import RoomCard, Verb
from polyloom.runs.execute import find_verb
from polyloom.web.forms import Form, make_form, read_form
from polyloom.web.looking import jobs_of, see
from polyloom.web.templating import page

router = APIRouter()


def verb_of(room: str, verb: str) -> tuple[RoomCard, Verb]:
    """Return the verb that an address names.

    Raises:
        HTTPException: 404, there is none.
    """
    try:
        return find_verb(f"{room}.{verb}")
    except PolyloomError:
        raise HTTPException(404) from None


@router.get("/start/{room}/{verb}")
def ask(request: Request, room: str, verb: str, like: str = "") -> Response:
    """Show the form of a verb; `like` names a run whose configuration fills it."""
    card, found = verb_of(room, verb)
    values: Mapping[str, Any] = {}
    if like:
        seen = see(request, like)
        if (seen.manifest.room, seen.manifest.verb) == (room, verb):
            values = read_yaml(seen.folder / "config.yaml")
    return _show(request, card, found, make_form(found.load_config(), values), like=like)


@router.post("/start/{room}/{verb}")
async def start(request: Request, room: str, verb: str) -> Response:
    """Queue a run with what was entered, or say at each field what does not fit."""
    card, found = verb_of(room, verb)
    entered = await request.form()
    texts = {name: [text for text in entered.getlist(name) if isinstance(text, str)] for name in entered}
    config, form = read_form(found.load_config(), texts)
    if config is None:
        return _show(request, card, found, form, 422)
    return RedirectResponse(f"/runs/{jobs_of(request).create(f'{room}.{verb}', config)}", 303)


@router.post("/rooms/{room}/quick")
def quick(request: Request, room: str) -> Response:
    """Queue the quick study of a room, or the quick tour."""
    _, found = verb_of(room, "run" if room == "tour" else "study")
    return RedirectResponse(f"/runs/{jobs_of(request).create(f'{room}.{found.name}', found.load_config()())}", 303)


def _show(request: Request, card: RoomCard, verb: Verb, form: Form, status: int = 200, like: str = "") -> Response:
    return page(request, "start.html.j2", status, room=card, verb=verb, form=form, like=like)
