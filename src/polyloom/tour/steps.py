"""The tour's steps are runs of their own, each in its own process: one that fails or dies takes no other with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue

from polyloom.core.config import make_config
from polyloom.core.errors import PolyloomError, Stopped
from polyloom.core.registry import RoomCard
from polyloom.runs.folder import Run, create_run, current_status, read_manifest
from polyloom.tour.worker import ENDED

COMMAND = [sys.executable, "-m", "polyloom"]
_PROGRESS_LINE = re.compile(r"^(?P<label>.+): (?P<done>\d+)/(?P<total>\d+)$")
Worker = subprocess.Popen[str]


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


def start_worker() -> Worker:
    """Start a process that works on steps, one after the other."""
    return subprocess.Popen(
        [*COMMAND[:2], "polyloom.tour.worker", COMMAND[2]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "POLYLOOM_PROGRESS_SECONDS": "1", "OMP_NUM_THREADS": "1"},
    )


def work(folder: Path, tour: Run, idle: SimpleQueue[Worker]) -> str | None:
    """Run or resume a step in a process of its own and wait for it.

    Args:
        folder: the step's run folder.
        tour: the tour's run, which shows the step's progress.
        idle: the workers that have nothing to do; one is taken and put back, or another for one that died.

    Returns:
        None when the step is done, else its error in one line.

    Raises:
        Stopped: the step was stopped and can be resumed.
    """
    _wait_until_free(folder)
    if read_manifest(folder).status == "done":
        return None
    worker = idle.get()
    try:
        last, code = _follow(worker, folder, tour)
    finally:
        idle.put(worker if worker.poll() is None or tour.stop_requested else start_worker())
    if code == Stopped.exit_code or tour.stop_requested:
        raise Stopped("stopped on request.", where=folder.name)
    manifest = read_manifest(folder)
    if manifest.status == "done":
        return None
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}. {last}".strip()
    return manifest.error or last


def _follow(worker: Worker, folder: Path, tour: Run) -> tuple[str, int]:
    """Have the step done and show its progress; returns the last other line that it wrote, and its exit code."""
    assert worker.stdin is not None
    assert worker.stderr is not None
    last = ""
    reported = 0
    with tour.progress(folder.name, 100) as advance:
        worker.stdin.write(json.dumps(["runs", "resume", folder.name, "--runs", str(folder.parent), "--json"]) + "\n")
        worker.stdin.flush()
        for line in worker.stderr:
            match = _PROGRESS_LINE.match(line.strip())
            if line.startswith(ENDED):
                return last.removeprefix("polyloom: "), int(line.removeprefix(ENDED))
            if match is None:
                last = line.strip() or last
                continue
            percent = 100 * int(match["done"]) // max(1, int(match["total"]))
            advance(percent - reported)
            reported = percent
    return last.removeprefix("polyloom: "), worker.wait()


def _wait_until_free(folder: Path, timeout_seconds: float = 60.0) -> None:
    """Wait for a step that a killed tour left behind to save and end."""
    deadline = time.monotonic() + timeout_seconds
    while current_status(folder, read_manifest(folder)) == "running":
        if time.monotonic() > deadline:
            raise PolyloomError("is still at work.", where=folder.name, hint="Wait for it to end, or stop it.")
        time.sleep(0.2)
