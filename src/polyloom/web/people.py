"""Who works in this browser, and where their work is kept."""

from __future__ import annotations

from functools import cache
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import RedirectResponse

from polyloom.core.errors import UserError
from polyloom.runs.store import EventStore, plain

NAME_COOKIE = "polyloom_name"
MAX_NAME_CHARACTERS = 40
# A name that the annotations use for what was settled, and for nobody.
RESERVED = ("adjudicated",)
YEAR_SECONDS = 31_536_000


@cache
def open_store(url: str) -> EventStore:
    """Return the store at an address; its schema is brought up to date once."""
    return EventStore(url)


def store_of(request: Request) -> EventStore:
    """Return the studio's store."""
    return open_store(request.app.state.settings.database_url)


def name_of(request: Request) -> str:
    """Return the name of who works in this browser; empty until it was given."""
    try:
        return checked_name(unquote(request.cookies.get(NAME_COOKIE, "")))
    except UserError:
        return ""


def checked_name(name: str) -> str:
    """Return a person's name without outer spaces.

    Raises:
        UserError: empty, too long, reserved, or not text.
    """
    name = plain(" ".join(name.split()))
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or name in RESERVED:
        raise UserError(f"a name has 1 to {MAX_NAME_CHARACTERS} characters and is not {RESERVED[0]!r}.")
    return name


def remember(response: RedirectResponse, name: str) -> RedirectResponse:
    """Make the browser keep a name."""
    response.set_cookie(NAME_COOKIE, quote(name), max_age=YEAR_SECONDS, httponly=True, samesite="lax")
    return response
