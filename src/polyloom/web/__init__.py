"""The studio: the web pages where people look at runs, start them, annotate, replay and judge.

Public names (imported on first use; the web libraries are the extra `web`):

- `create_app`, `Settings`: the application, for any ASGI server.
- `serve`: the application on uvicorn, as `polyloom serve` starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names

if TYPE_CHECKING:
    from polyloom.web.app import create_app
    from polyloom.web.server import serve
    from polyloom.web.settings import Settings

__all__ = ["Settings", "create_app", "serve"]

_MODULES = {"Settings": ".settings", "create_app": ".app", "serve": ".server"}

__getattr__ = lazy_names(__name__, _MODULES)
