"""What a person sees in the terminal after a verb: verdicts first, then figures, then where the report is."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from polyloom.core.result import Result
from polyloom.reports.tables import Grid, Shown, grid, scalars_table
from polyloom.reports.text import human, one_line

MAX_ROWS, MAX_COLUMNS = 12, 8


def print_summary(result: Result, console: Console, *, report: Path | None = None) -> None:
    """Print a result for a person.

    Args:
        result: the result.
        console: where to.
        report: the report's path, when it has been written.
    """
    console.print(Text(f"{human(result.room)} {human(result.verb)}", style="bold"))
    for verdict in result.verdicts:
        mark = Text("  ● ", style="cyan")
        console.print(mark.append(one_line(verdict), style="bold default"), highlight=False)
    if result.scalars:
        console.print(Padding(table_console(scalars_table(result.scalars)), (1, 0, 0, 2)))
    left_out = []
    for name, table in result.tables.items():
        title = one_line(table.title) or human(name)
        if len(table.rows) > MAX_ROWS or len(table.columns) > MAX_COLUMNS:
            left_out.append(title)
            continue
        console.print(Padding(Text(title, style="bold"), (1, 0, 0, 2)))
        console.print(Padding(table_console(grid(table)), (0, 0, 0, 2)))
    console.print()
    if left_out:
        console.print(Text(f"  In the report: {', '.join(left_out)}", style="dim"))
    if result.limitations:
        some = len(result.limitations)
        console.print(Text(f"  {some} limitation{'s' * (some > 1)}: see the report.", style="dim"))
    if report is not None:
        # Not wrapped: a path cut in two cannot be opened.
        console.print(Text("  Report: ").append(str(report), style="underline"), soft_wrap=True, highlight=False)


def table_console(shown: Grid) -> RichTable:
    """Return a table for the terminal; numbers are aligned to the right, and long cells wrap."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header, numeric in zip(shown.headers, shown.numeric, strict=True):
        table.add_column(Text(header), justify="right" if numeric else "left", overflow="fold")
    for row in shown.rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(cell: Shown) -> Text:
    text = Text(cell.text)
    return text.append(f" {cell.interval}", style="dim") if cell.interval else text
