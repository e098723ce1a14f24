"""`polyloom serve`: the studio. The web libraries are imported when it is called, not before."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from polyloom.cli.app import RunsOption
from polyloom.core.errors import MissingExtra
from polyloom.runs.execute import default_root


def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(help="The port; 0 takes a free one.")] = 8321,
    jobs: int = 1,
    database: str | None = None,
    runs: RunsOption = None,
) -> None:
    """Open the studio: web pages to start, watch and compare runs, annotate, replay and judge.

    On another address than loopback a token is asked for: `POLYLOOM_TOKEN`, or one that is made and printed.

    Args:
        host: the address to bind to.
        jobs: how many runs are at work at a time; the others wait in the queue.
        database: URL of the database of annotations and judgements. [default: SQLite in the runs folder]
    """
    try:
        from polyloom.web import serve as serve_studio
        from polyloom.web.settings import Settings
    except ImportError as error:
        raise MissingExtra(str(error.name), extra="web") from error
    serve_studio(
        Settings(
            runs=(runs or default_root()).absolute(),
            host=host,
            port=port,
            token=os.environ.get("POLYLOOM_TOKEN") or None,
            num_jobs=jobs,
            database=database,
        )
    )
