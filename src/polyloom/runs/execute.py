"""The one path behind command line, Python, web and tour: make or open a run, do its verb, store what it found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyloom.core.config import Config, make_config
from polyloom.core.errors import Stopped, UserError
from polyloom.core.files import write_text
from polyloom.core.registry import RoomCard, Verb, card, load
from polyloom.core.result import Result, read_result
from polyloom.runs.folder import Run, create_run, open_run, read_manifest
from polyloom.runs.index import record


def default_root() -> Path:
    """Return the runs folder: `POLYLOOM_RUNS`, or `runs` in the working directory."""
    return Path(os.environ.get("POLYLOOM_RUNS", "runs"))


def run_verb(
    target: str,
    values: Mapping[str, Any] | Config | None = None,
    *,
    runs: Path | None = None,
    name: str | None = None,
    parent: str | None = None,
) -> Result:
    """Run `room.verb` in a new run folder.

    Args:
        target: for example `silu.facts`.
        values: the configuration, or its fields.
        runs: the runs folder; by default `default_root()`.
        name: the run's name; by default made of room, verb and time.
        parent: the run that this one is a part of.

    Returns:
        The result, which is also in the run's `result.json`.

    Raises:
        PolyloomError: refused input, failed or stopped work.
    """
    room_card, verb = find_verb(target)
    model = verb.load_config()
    config = values if isinstance(values, Config) else make_config(model, values or {})
    root = runs or default_root()
    run = create_run(root, room_card.name, verb, config, name, parent)
    try:
        return _work(root, run, verb)
    except UserError:
        # Refused input leaves nothing behind, unless the run has something to resume.
        if not any((run.path / kept).exists() for kept in ("steps", "checkpoints", "artifacts", "metrics.jsonl")):
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def find_verb(target: str) -> tuple[RoomCard, Verb]:
    """Return the card and verb of `room.verb`.

    Raises:
        UserError: there is no such room or verb.
    """
    room_name, _, verb_name = target.partition(".")
    room_card = card(room_name)
    return room_card, room_card.verb(verb_name)


def resume(folder: Path) -> Result:
    """Continue a stopped, failed or killed run; a done one returns its stored result.

    Raises:
        PolyloomError: as `run_verb`.
    """
    manifest = read_manifest(folder)
    _, verb = find_verb(f"{manifest.room}.{manifest.verb}")
    if manifest.status == "done":
        return read_result(folder / "result.json")
    return _work(folder.parent, open_run(folder, verb), verb)


def _work(root: Path, run: Run, verb: Verb) -> Result:
    with run.working():
        run.set_status("running")
        record(root, run.path, run.manifest)
        try:
            result: Result = load(verb.run)(run.config, run)
            write_text(run.path / "result.json", result.model_dump_json(indent=1) + "\n")
            run.set_status("done")
        except Stopped as stop:
            run.set_status("stopped", str(stop))
            raise
        except BaseException as error:
            run.set_status("failed", str(error) or type(error).__name__)
            raise
        finally:
            record(root, run.path, run.manifest)
        # After the status: a report that cannot be drawn does not undo the work, and `polyloom report` draws it again.
        write_report(run.path, result)
        return result


def write_report(folder: Path, result: Result) -> Path:
    """Render `report.html` of a result into its run folder and return its path."""
    page = card(result.room).page
    html: str = load(page)(result, folder) if page else load("polyloom.reports:render_html")(result)
    path = folder / "report.html"
    write_text(path, html)
    return path
