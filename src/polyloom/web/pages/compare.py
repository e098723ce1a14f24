"""Two runs side by side: which options differ, each figure with its interval, and paired differences."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from polyloom.reports.comparison import compare_figures, compare_options, compare_rows
from polyloom.web.looking import chosen, result_of, rows_of, see
from polyloom.web.templating import page

router = APIRouter()
MAX_CHOICES = 200


@router.get("/compare")
def compare(request: Request, run: Annotated[list[str], Query(max_length=20)] = []) -> Response:  # noqa: B006
    """Compare two runs, or ask which."""
    names = [name for name in run if name]
    results = [result_of(see(request, name).folder) for name in names]
    first, second = results if len(results) == 2 else (None, None)
    done = [row.id for row in chosen(rows_of(request), status="done")][:MAX_CHOICES]
    both = first is not None and second is not None
    return page(
        request,
        "compare.html.j2",
        names=[*names, "", ""][:2],
        choices=list(dict.fromkeys([*names, *done])),
        num_given=len(names),
        both=both,
        first=first,
        second=second,
        options=compare_options(first, second) if first and second else [],
        figures=compare_figures(first, second) if first and second else [],
        paired=compare_rows(first, second) if first and second else [],
    )
