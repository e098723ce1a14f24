"""Layer 2: reports. A result becomes one self-contained HTML page, Markdown, JSON, or a summary in the terminal.

Public names (imported on first use, so that importing this package costs nothing):

- `render_html`, `render_tour_html`, `Section`: one page for a result, one page for many.
- `render_markdown`, `render_json`, `print_summary`: the other forms.
- `Figure`, `figures_for`, `default_figures`, `series_figure`, `heat_figure`: figures, for a room's own `report.py` too.
- `command_line`: the command that repeats a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names

if TYPE_CHECKING:
    from polyloom.reports.commands import command_line
    from polyloom.reports.figures import Figure, default_figures, figures_for, heat_figure, series_figure
    from polyloom.reports.html import Section, render_html, render_tour_html
    from polyloom.reports.markdown import render_json, render_markdown
    from polyloom.reports.summary import print_summary

__all__ = [
    "Figure",
    "Section",
    "command_line",
    "default_figures",
    "figures_for",
    "heat_figure",
    "print_summary",
    "render_html",
    "render_json",
    "render_markdown",
    "render_tour_html",
    "series_figure",
]

_MODULES = {
    "Figure": ".figures",
    "Section": ".html",
    "command_line": ".commands",
    "default_figures": ".figures",
    "figures_for": ".figures",
    "heat_figure": ".figures",
    "print_summary": ".summary",
    "render_html": ".html",
    "render_json": ".markdown",
    "render_markdown": ".markdown",
    "render_tour_html": ".html",
    "series_figure": ".figures",
}

__getattr__ = lazy_names(__name__, _MODULES)
