"""The studio on uvicorn."""

from __future__ import annotations

import uvicorn

from polyloom.web.app import create_app
from polyloom.web.settings import Settings


def serve(settings: Settings) -> None:
    """Serve the studio until it is interrupted; runs that are at work go on.

    Args:
        settings: how it is served.
    """
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
