"""The first page: what is at work, the rooms, and the newest runs."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from polyloom.core.registry import rooms
from polyloom.web.pages import Nav
from polyloom.web.templating import page

router = APIRouter()
NAV = (Nav("home", "/", 0),)


@router.get("/")
def home(request: Request) -> Response:
    """Show the first page."""
    return page(request, "home.html.j2", rooms=list(rooms().values()))
