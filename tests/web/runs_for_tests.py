"""Run folders made without running anything, for tests of pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyloom.core.files import write_text
from polyloom.core.registry import card
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.runs.execute import write_report
from polyloom.runs.folder import Run, create_run
from polyloom.runs.index import record

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}${7*7}\u202e\u0000\r\nSet-Cookie: a=b"


def make_run(
    root: Path,
    name: str,
    *,
    room: str = "silu",
    verb: str = "facts",
    status: Any = "done",
    error: str | None = None,
    parent: str | None = None,
    report: bool = False,
    **parts: Any,
) -> Run:
    """Make a run folder with a result and its row in the index.

    Args:
        root: the runs folder.
        name: the run's name.
        room: the room.
        verb: the verb.
        status: the run's status; only a `done` one has a result.
        error: why it ended.
        parent: the run that it is a step of.
        report: whether its report is drawn.
        parts: parts of the result.
    """
    found = card(room).verb(verb)
    run = create_run(root, room, found, found.load_config()(), name, parent)
    if status == "done":
        result = run.result(**(parts or {"verdicts": [f"{name} is done"], "scalars": {"x": Scalar(value=1.5)}}))
        write_text(run.path / "result.json", result.model_dump_json())
        if report:
            write_report(run.path, result)
    run.set_status(status, error)
    record(root, run.path, run.manifest)
    return run


def hostile_run(root: Path) -> Result:
    """Make a run whose every text is hostile; returns its result."""
    run = make_run(
        root,
        "hostile",
        report=True,
        verdicts=[HOSTILE],
        limitations=[HOSTILE],
        scalars={HOSTILE: Scalar(value=HOSTILE, unit=HOSTILE), "n": Scalar(value=1.0, low=0.5, high=2.0, unit=HOSTILE)},
        tables={HOSTILE: Table(columns=[HOSTILE, "n"], rows=[[HOSTILE, 1], ["=1+1", 2]], title=HOSTILE)},
        series={HOSTILE: Series(x=[0, 1], y=[1, 2], x_label=HOSTILE, y_label=HOSTILE, group=HOSTILE)},
        artifacts={"a": Artifact(path="../../../etc/passwd", media_type=HOSTILE, description=HOSTILE)},
    )
    run.artifact("page.html").write_text("<script>parent.document.title = 'taken'</script>")
    run.artifact("code.js").write_text("alert(1)")
    (run.path / "job.log").write_text(f"{HOSTILE}\n{HOSTILE}: 1/2\n".replace("\r\n", " "))
    run.log(**{HOSTILE.replace("\0", ""): 1.0})
    return Result.model_validate_json((run.path / "result.json").read_text())
