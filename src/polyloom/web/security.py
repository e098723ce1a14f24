"""What every request must pass: the host's name, the body's size, the token, and the mark of a page of this server."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyloom.web.settings import LOOPBACK, Settings

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Files of runs may be anything: they get an origin of their own, and nothing in them acts or loads.
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/login", "/static/")
SESSION_COOKIE = "polyloom_session"
_SESSION = re.compile(r"[A-Za-z0-9_-]{43}")


def guard(app: ASGIApp, settings: Settings, secret: str) -> ASGIApp:
    """Wrap an application so that only fitting requests reach it and every response carries the policies.

    Args:
        app: the application.
        settings: how it is served.
        secret: what sessions are signed with.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = read_cookies(headers.get("cookie", ""))
        known = cookies.get(SESSION_COOKIE, "")
        session = known if _SESSION.fullmatch(known) else secrets.token_urlsafe(32)
        scope.setdefault("state", {}).update(session=session, csrf=csrf_token(secret, session))
        protected = _protect(send, None if session == known else session)
        refusal = refuse(scope, headers, cookies, settings, session)
        if refusal is not None:
            await refusal(scope, receive, protected)
            return
        await app(scope, _limited(receive, settings.max_body_bytes), protected)

    return guarded


def refuse(
    scope: Scope, headers: Headers, cookies: dict[str, str], settings: Settings, session: str
) -> Response | None:
    """Return the answer to a request that must not reach the application, or None."""
    if not host_allowed(headers.get("host", ""), settings):
        return PlainTextResponse("This address is not served here.\n", 400)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > settings.max_body_bytes:
        return PlainTextResponse("The request is too large.\n", 413)
    if scope["method"] not in SAFE_METHODS and not same_origin(headers):
        return PlainTextResponse("The request comes from another site.\n", 403)
    if settings.token and not scope["path"].startswith(OPEN_PATHS):
        given = cookies.get(key_cookie(settings), "")
        if not hmac.compare_digest(given.encode(), session_key(settings.token, session).encode()):
            if scope["method"] in SAFE_METHODS and "text/html" in headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            return PlainTextResponse("A token is needed: open /login.\n", 401)
    return None


def host_allowed(host: str, settings: Settings) -> bool:
    """Return whether the header `Host` names this server: a name that somebody pointed here does not.

    Bound to all addresses, the server cannot know its names: it then takes any IP address, which no name can stand for.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in LOOPBACK or name == settings.host:
        return True
    return settings.host in ("0.0.0.0", "::") and bool(re.fullmatch(r"[0-9.]+|[0-9a-f:]+", name))


def same_origin(headers: Headers) -> bool:
    """Return whether a write comes from a page of this server, as far as the browser says."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def csrf_token(secret: str, session: str) -> str:
    """Return what a form must carry to be taken for one of this session's pages."""
    return hmac.new(secret.encode(), f"csrf:{session}".encode(), hashlib.sha256).hexdigest()


def session_key(token: str, session: str) -> str:
    """Return what the cookie of a session holds that knew the token."""
    return hmac.new(token.encode(), f"key:{session}".encode(), hashlib.sha256).hexdigest()


def key_cookie(settings: Settings) -> str:
    """Return the name of the cookie for the token: cookies are shared by the ports of one host."""
    return f"polyloom_key_{settings.port}"


async def check_csrf(request: Request) -> None:
    """Refuse a write without the token of its session, in the header `X-CSRF-Token` or the form's field `csrf`.

    Raises:
        HTTPException: 403.
    """
    if request.method in SAFE_METHODS:
        return
    given = request.headers.get("x-csrf-token", "")
    kind = request.headers.get("content-type", "")
    if not given and kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        field = (await request.form()).get("csrf")
        given = field if isinstance(field, str) else ""
    if not hmac.compare_digest(given.encode(), request.state.csrf.encode()):
        raise HTTPException(403, "This page is too old, or the request comes from elsewhere. Reload the page.")


def confined(root: Path, *parts: str) -> Path:
    """Return a path below `root` made of `parts`, which come from a request.

    Raises:
        HTTPException: 404 when it leads outside `root`, through a link too, or does not exist.
    """
    if any("\0" in part for part in parts):
        raise HTTPException(404)
    path = root.joinpath(*parts).resolve()
    if path == root.resolve() or not path.is_relative_to(root.resolve()) or not path.exists():
        raise HTTPException(404)
    return path


def read_cookies(header: str) -> dict[str, str]:
    """Return the cookies of a header; a broken header has none."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header[:4096]).items()}
    except CookieError:
        return {}


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the bytes of a body that does not say its length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, "The request is too large.")
        return message

    return counted


def _protect(send: Send, new_session: str | None) -> Send:
    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", CONTENT_POLICY)
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("referrer-policy", "same-origin")
            headers.setdefault("cross-origin-opener-policy", "same-origin")
            headers.setdefault("cross-origin-resource-policy", "same-origin")
            headers.setdefault("permissions-policy", "camera=(), microphone=(), geolocation=()")
            headers.setdefault("cache-control", "no-store")
            if new_session:
                cookie = f"{SESSION_COOKIE}={new_session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
                headers.append("set-cookie", cookie)
        await send(message)

    return protected
