"""`polyloom runs`, `polyloom rerun` and `polyloom report`: look at, continue, repeat, compare and delete runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table as RichTable

from polyloom.cli.app import JsonOption, RunsOption, show
from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.result import Result, read_result
from polyloom.runs import index
from polyloom.runs.execute import default_root, run_verb, write_report
from polyloom.runs.execute import resume as resume_run
from polyloom.runs.folder import current_status, open_run, read_manifest

app = App(name="runs", sort_key=100, help="List, show, resume, compare and delete runs.")
RunName = Annotated[str, Parameter(help="A run's name, `last`, or the path of its folder.")]


@app.command(name="list")
def list_runs(
    *, room: str | None = None, status: str | None = None, runs: RunsOption = None, as_json: JsonOption = False
) -> None:
    """List the runs, newest first.

    Args:
        room: only runs of this room.
        status: only runs of this status: running, done, failed, stopped or interrupted.
    """
    rows = index.list_runs(runs or default_root(), room, status)
    if as_json:
        sys.stdout.write(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1) + "\n")
        return
    table = RichTable("run", "status", "verdict", box=None)
    for row in rows:
        table.add_row(row.id, row.status, row.error or row.verdict)
    Console().print(table if rows else "No runs yet. Start one, for example: polyloom tour")


@app.command(name="show")
def show_run(run: RunName, /, *, runs: RunsOption = None, as_json: JsonOption = False) -> None:
    """Show a run: its result when it is done, else its status and what to do next."""
    root = runs or default_root()
    folder = index.find_run(root, run)
    manifest = read_manifest(folder)
    if (folder / "result.json").exists():
        show(read_result(folder / "result.json"), folder.parent, as_json=as_json)
        return
    status = current_status(folder, manifest)
    if as_json:
        sys.stdout.write(json.dumps({**manifest.model_dump(), "status": status}, indent=1) + "\n")
        return
    console = Console()
    console.print(f"{manifest.id}: {status}", manifest.error or "", highlight=False)
    console.print(read_text(folder / "config.yaml"), highlight=False)
    if status != "running":
        console.print(f"Resume with: polyloom runs resume {manifest.id}", highlight=False)


@app.command
def resume(run: RunName, /, *, runs: RunsOption = None, as_json: JsonOption = False) -> int:
    """Continue a stopped, failed or killed run where it was."""
    folder = index.find_run(runs or default_root(), run)
    return show(resume_run(folder), folder.parent, as_json=as_json)


@app.command
def compare(first: RunName, second: RunName, /, *, runs: RunsOption = None, as_json: JsonOption = False) -> None:
    """Compare two runs: options that differ, figures side by side, and paired differences over the rows of both."""
    root = runs or default_root()
    results = [_result(root, name) for name in (first, second)]
    difference = comparison(*results)
    if as_json:
        sys.stdout.write(json.dumps(difference, ensure_ascii=False, indent=1) + "\n")
        return
    console = Console()
    for title, rows in difference.items():
        table = RichTable(*(rows[0] if rows else ()), title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*(str(cell) for cell in row.values()))
        console.print(table if rows else f"{title}: no difference")


def _result(root: Path, name: str) -> Result:
    folder = index.find_run(root, name)
    if not (folder / "result.json").exists():
        raise UserError("has no result yet.", where=folder.name, hint=f"Finish it: polyloom runs resume {folder.name}")
    return read_result(folder / "result.json")


def comparison(first: Result, second: Result) -> dict[str, list[dict[str, Any]]]:
    """Return the options that differ, the figures side by side, and the differences over the rows that both have."""
    from polyloom.reports.comparison import compare_figures, compare_options, compare_rows

    parts = {
        "options": compare_options(first, second),
        "figures": compare_figures(first, second),
        "paired": compare_rows(first, second),
    }
    return {title: [asdict(row) for row in rows] for title, rows in parts.items()}  # type: ignore[attr-defined]


@app.command
def delete(run: RunName, /, *, runs: RunsOption = None) -> None:
    """Delete a run's folder; a running one is refused."""
    root = runs or default_root()
    folder = index.find_run(root, run)
    index.delete_run(root, folder)
    Console(stderr=True).print(f"Deleted {folder.name}.", highlight=False)


@app.command
def reindex(*, runs: RunsOption = None) -> None:
    """Rebuild the index from the run folders."""
    root = runs or default_root()
    Console(stderr=True).print(f"Indexed {index.reindex(root)} runs in {root}.", highlight=False)


def rerun(run: RunName, /, *, name: str | None = None, runs: RunsOption = None, as_json: JsonOption = False) -> int:
    """Run a run's resolved configuration again, as a new run.

    Args:
        name: the new run's name.
    """
    from polyloom.runs.execute import find_verb

    root = runs or default_root()
    folder = index.find_run(root, run)
    manifest = read_manifest(folder)
    target = f"{manifest.room}.{manifest.verb}"
    config = open_run(folder, find_verb(target)[1]).config
    return show(run_verb(target, config, runs=root, name=name), root, as_json=as_json)


def report(run: RunName, /, *, format: Literal["html", "markdown", "json"] = "html", runs: RunsOption = None) -> None:
    """Render a run's report again from its result: HTML into its folder, Markdown or JSON on standard output.

    Args:
        format: what to render.
    """
    root = runs or default_root()
    result = _result(root, run)
    if format == "html":
        print(write_report(index.find_run(root, run), result))
    elif format == "json":
        sys.stdout.write(result.model_dump_json(indent=1) + "\n")
    else:
        from polyloom.reports import render_markdown

        sys.stdout.write(render_markdown(result))
