"""The tour's steps are runs of their own, each in its own process: one that fails or dies takes no other with it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from polyloom.core.config import make_config
from polyloom.core.errors import PolyloomError, Stopped
from polyloom.core.registry import RoomCard
from polyloom.runs.folder import Run, create_run, current_status, read_manifest

COMMAND = [sys.executable, "-m", "polyloom"]
_PROGRESS_LINE = re.compile(r"^(?P<label>.+): (?P<done>\d+)/(?P<total>\d+)$")
_PR_SET_PDEATHSIG = 1


def step_run(tour: Run, card: RoomCard, materials: Mapping[str, object]) -> Path:
    """Return the folder of a room's step, made with its configuration where it does not exist.

    Args:
        tour: the tour's run, whose seed and profile the step takes.
        card: the room.
        materials: what the tour has by name (`model`, `text`, `languages`); an absent one leaves the step's default.

    Raises:
        UserError: the materials do not fit the step's configuration.
    """
    assert card.tour is not None
    root = tour.path.parent
    name = f"{tour.id}-{card.name}"
    if not (root / name / "run.json").exists():
        verb = card.verb(card.tour.verb)
        given = {field: materials[name] for field, name in card.tour.inputs.items() if materials.get(name)}
        values = {"seed": tour.config.seed, "profile": getattr(tour.config, "profile", "quick"), **given}
        create_run(root, card.name, verb, make_config(verb.load_config(), values), name, parent=tour.id)
    return root / name


def work(folder: Path, tour: Run, processes: list[subprocess.Popen[str]]) -> str | None:
    """Run or resume a step in a process of its own and wait for it.

    Args:
        folder: the step's run folder.
        tour: the tour's run, which shows the step's progress.
        processes: where the process is added, for whoever may have to end it.

    Returns:
        None when the step is done, else its error in one line.

    Raises:
        Stopped: the step was stopped and can be resumed.
    """
    _wait_until_free(folder)
    if read_manifest(folder).status == "done":
        return None
    process = subprocess.Popen(
        [*COMMAND, "runs", "resume", folder.name, "--runs", str(folder.parent), "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "POLYLOOM_PROGRESS_SECONDS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    processes.append(process)
    with process:
        last = _follow(process, folder.name, tour)
    if process.returncode == Stopped.exit_code:
        raise Stopped("stopped on request.", where=folder.name)
    manifest = read_manifest(folder)
    if manifest.status == "done":
        return None
    if process.returncode < 0:
        return f"the process was ended by {signal.Signals(-process.returncode).name}. {last}".strip()
    return manifest.error or last


def _die_with_parent() -> None:
    """Ask Linux to stop the step when the tour dies, so that no step outlives a killed tour."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _follow(process: subprocess.Popen[str], label: str, tour: Run) -> str:
    """Show the step's progress until it ends; returns the last other line that it wrote to standard error."""
    assert process.stderr is not None
    last = ""
    reported = 0
    with tour.progress(label, 100) as advance:
        for line in process.stderr:
            match = _PROGRESS_LINE.match(line.strip())
            if match is None:
                last = line.strip() or last
                continue
            percent = 100 * int(match["done"]) // max(1, int(match["total"]))
            advance(percent - reported)
            reported = percent
        process.wait()
    return last.removeprefix("polyloom: ")


def _wait_until_free(folder: Path, timeout_seconds: float = 60.0) -> None:
    """Wait for a step that a killed tour left behind to save and end."""
    deadline = time.monotonic() + timeout_seconds
    while current_status(folder, read_manifest(folder)) == "running":
        if time.monotonic() > deadline:
            raise PolyloomError("is still at work.", where=folder.name, hint="Wait for it to end, or stop it.")
        time.sleep(0.2)
