"""Pages from templates: everything escaped, nothing undefined, in the visitor's language."""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse

from polyloom.reports.html import environment, stylesheet
from polyloom.reports.text import one_line
from polyloom.web.i18n import LANGUAGES, choose_language, moment, room_text, translate, verb_text

HERE = Path(__file__).parent
STATIC = HERE / "static"


def page(request: Request, template: str, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Render a template as a response.

    Args:
        request: the request; gives language, session and the place in the navigation.
        template: a file below `templates/`, for example `runs/list.html.j2`.
        status_code: the response's status.
        values: what the template's names stand for, beside `t`, `language`, `csrf`, `path` and `nav`.
    """
    return HTMLResponse(render(request, template, **values), status_code)


def render(request: Request, template: str, **values: Any) -> str:
    """Render a template as text; arguments as `page`."""
    language = language_of(request)
    return (
        templates()
        .get_template(template)
        .render(
            t=partial(translate, language),
            room_text=partial(room_text, language),
            verb_text=partial(verb_text, language),
            moment=partial(moment, language),
            language=language,
            languages=LANGUAGES,
            csrf=request.state.csrf,
            path=request.url.path,
            nav=request.app.state.nav,
            has_token=bool(request.app.state.settings.token),
            **values,
        )
    )


def language_of(request: Request) -> str:
    """Return the language of the visitor's pages."""
    return choose_language(request.cookies.get("polyloom_language"), request.headers.get("accept-language", ""))


def say(request: Request, key: str, **values: object) -> str:
    """Return a text of the catalogue in the visitor's language."""
    return translate(language_of(request), key, **values)


@cache
def templates() -> Environment:
    """Return the templates' environment."""
    made = environment(HERE / "templates")
    made.globals["static"] = static_url
    made.filters |= {"one_line": one_line, "segment": partial(quote, safe="")}
    return made


@cache
def static_url(name: str) -> str:
    """Return the address of a static file; it changes with the file's content, so browsers may keep it for ever."""
    data = stylesheet().encode() if name == "report.css" else (STATIC / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"/static/{name}?v={digest}"
