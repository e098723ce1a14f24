"""The tour's page: the model's own section, then one a room, failed ones with their error line."""

from __future__ import annotations

from pathlib import Path

from polyloom.core.errors import PolyloomError
from polyloom.core.registry import card
from polyloom.core.result import Result, read_result
from polyloom.reports import Section, render_tour_html


def page(result: Result, folder: Path) -> str:
    """Render the tour's page from its result and the runs of its steps, which stand beside it.

    Args:
        result: the tour's result.
        folder: the tour's run folder.
    """
    sections = [_section(folder, [str(cell) for cell in row]) for row in result.tables["steps"].rows]
    return render_tour_html(result, sections)


def _section(folder: Path, row: list[str]) -> Section:
    room, run, status, message = row
    known = card(room)
    step = folder.parent / run
    result, error = None, None if status == "done" else message
    if error is None:
        try:
            result = read_result(step / "result.json")
        except PolyloomError as refused:
            error = str(refused)
    link = f"../{run}/report.html" if (step / "report.html").exists() else None
    return Section(known.name, known.title, known.question, run, result, error, link)
