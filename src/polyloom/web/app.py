"""The application: the pages behind the guard, the static files, and the queue of runs as long as it lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from polyloom.core.errors import PolyloomError, UserError
from polyloom.reports.html import stylesheet
from polyloom.web.events import Hub
from polyloom.web.jobs import Jobs
from polyloom.web.pages import page_modules
from polyloom.web.security import check_csrf, guard
from polyloom.web.settings import Settings, kept_secret
from polyloom.web.templating import STATIC, page, say

TICK_SECONDS = 0.5


class KeptFiles(StaticFiles):
    """Static files whose address changes with their content, so that a browser need not ask again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file with a long life where its address names its content."""
        response = await super().get_response(path, scope)
        if scope.get("query_string", b"").startswith(b"v="):
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def create_app(settings: Settings) -> FastAPI:
    """Make the studio's application.

    Args:
        settings: how it is served.
    """
    app = FastAPI(
        title="Polyloom studio",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
        dependencies=[Depends(check_csrf)],
    )
    app.state.settings = settings
    app.state.jobs = Jobs(settings.runs, settings.num_jobs)
    app.state.hub = Hub()
    modules = page_modules()
    for module in modules:
        app.include_router(module.router)
    entries = [entry for module in modules for entry in getattr(module, "NAV", ())]
    app.state.nav = sorted(entries, key=lambda entry: entry.order)
    app.get("/static/report.css")(_report_style)
    app.mount("/static", KeptFiles(directory=STATIC))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unfit_request)
    app.add_exception_handler(PolyloomError, _polyloom_error)
    app.add_exception_handler(Exception, _defect)
    secret = kept_secret(settings.folder / "secret")
    app.add_middleware(guard, settings=settings, secret=secret)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(_keep_working(app.state.jobs))
    try:
        yield
    finally:
        app.state.hub.closing.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _keep_working(jobs: Jobs) -> None:
    """Start the next runs and note those that ended, for as long as the server lives."""
    while True:
        try:
            await asyncio.to_thread(jobs.tick)
        except Exception:  # A run that cannot be started must not keep the others waiting.
            logging.getLogger(__name__).exception("the queue of runs stumbled")
        await asyncio.sleep(TICK_SECONDS)


def _report_style() -> Response:
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return PlainTextResponse(stylesheet(), media_type="text/css", headers=headers)


def _error_page(request: Request, status: int, title: str, detail: str) -> HTMLResponse:
    return page(request, "error.html.j2", status, title=title, detail=detail)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = f"error.{error.status_code}" if error.status_code in (403, 404, 413) else "error.other"
    detail = error.detail if error.status_code != 404 else say(request, "error.404_detail")
    return _error_page(request, error.status_code, say(request, kind), detail)


async def _unfit_request(request: Request, error: Exception) -> Response:
    return _error_page(request, 422, say(request, "error.422"), say(request, "error.422_detail"))


async def _polyloom_error(request: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, UserError) else 500
    return _error_page(request, status, say(request, "error.other"), str(error))


async def _defect(request: Request, error: Exception) -> Response:
    return _error_page(request, 500, say(request, "error.500"), say(request, "error.500_detail"))
