"""The studio on uvicorn: it binds, asks for a token where others can reach it, and says where it is."""

from __future__ import annotations

import dataclasses
import socket
import sys

import uvicorn

from polyloom.core.errors import UserError
from polyloom.core.files import lock
from polyloom.web.app import create_app
from polyloom.web.settings import LOOPBACK, Settings, kept_secret


def serve(settings: Settings) -> None:
    """Serve the studio until it is interrupted; runs that are at work go on without it.

    Args:
        settings: how it is served.

    Raises:
        UserError: the address cannot be bound to, the settings do not fit, or another studio has this runs folder.
    """
    if settings.num_jobs < 1:
        raise UserError("must be at least 1.", where="--jobs")
    with lock(settings.folder / "lock"):
        listening = bind(settings.host, settings.port)
        settings = dataclasses.replace(settings, port=listening.getsockname()[1], token=needed_token(settings))
        announce(settings)
        config = uvicorn.Config(
            create_app(settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        with listening:
            _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends the streams of events first: they would keep the server waiting."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.hub.closing.set()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address.

    Raises:
        UserError: it cannot.
    """
    hint = "Choose another port with --port, or 0 for a free one."
    if not 0 <= port < 65_536:
        raise UserError("is no port.", where="--port", hint=hint)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot be bound to ({error.strerror}).", where=f"{host}:{port}", hint=hint) from error


def needed_token(settings: Settings) -> str | None:
    """Return the token to ask for: the one that was given, and one that is kept in the runs folder off loopback."""
    if settings.token or settings.host in LOOPBACK:
        return settings.token
    return kept_secret(settings.folder / "token")


def announce(settings: Settings) -> None:
    """Say on standard error where the studio is."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"The studio is at http://{host}:{settings.port} (runs in {settings.runs}); Ctrl-C ends it.", file=sys.stderr)
    if settings.token and settings.host not in LOOPBACK:
        print(f"Token: {settings.token}", file=sys.stderr)
    sys.stderr.flush()
