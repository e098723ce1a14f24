"""Who may look, and in which language: the token's page and the choice of language."""

from __future__ import annotations

import asyncio
import hmac
import re
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.web.i18n import LANGUAGES
from polyloom.web.security import key_cookie, session_key
from polyloom.web.settings import Settings
from polyloom.web.templating import page

router = APIRouter()
_LOCAL = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")
YEAR_SECONDS = 31_536_000


def local_path(path: str) -> str:
    """Return a path of this server that a request names, or `/` where it would lead elsewhere."""
    return path if len(path) < 2000 and _LOCAL.fullmatch(path) else "/"


@router.get("/login")
def ask_token(request: Request) -> Response:
    """Ask for the token."""
    return page(request, "login.html.j2", wrong=False)


@router.post("/login")
async def check_token(request: Request, token: Annotated[str, Form(max_length=500)]) -> Response:
    """Let in whoever knows the token."""
    settings: Settings = request.app.state.settings
    if not settings.token:
        return RedirectResponse("/", 303)
    if not hmac.compare_digest(token.strip().encode(), settings.token.encode()):
        await asyncio.sleep(0.5)
        return page(request, "login.html.j2", 403, wrong=True)
    response = RedirectResponse("/", 303)
    key = session_key(settings.token, request.state.session)
    response.set_cookie(key_cookie(settings), key, max_age=YEAR_SECONDS, httponly=True, samesite="strict")
    return response


@router.post("/logout")
def forget(request: Request) -> Response:
    """Forget that this browser knew the token."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(key_cookie(request.app.state.settings), httponly=True, samesite="strict")
    return response


@router.get("/language/{code}")
def choose(code: str, next: str = "/") -> Response:
    """Remember a language."""
    if code not in LANGUAGES:
        raise HTTPException(404)
    response = RedirectResponse(local_path(next), 303)
    response.set_cookie("polyloom_language", code, max_age=YEAR_SECONDS, httponly=True, samesite="lax")
    return response
