"""The queue: runs that were started on a page, each a process of its own that outlives the server.

What the queue knows stands in the run folders (`job.json`), so that a server that was killed finds it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from polyloom.core.config import Config
from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import lock, read_json, write_json
from polyloom.runs.execute import find_verb
from polyloom.runs.folder import Manifest, create_run, current_status, open_run, read_manifest
from polyloom.runs.index import delete_run, record

COMMAND = [sys.executable, "-m", "polyloom"]
JOB_FILE = "job.json"
LOG_FILE = "job.log"


class Job(BaseModel):
    """The file `job.json` of a run that the studio started."""

    state: Literal["queued", "started"]
    since: str
    pid: int | None = None


class Jobs:
    """The runs that wait and the runs that are at work.

    Its methods may be called from several threads at a time.
    """

    def __init__(self, root: Path, num_jobs: int) -> None:
        """Take up the queue of a runs folder: what waited waits again, what is at work is watched again.

        Args:
            root: the runs folder.
            num_jobs: how many runs are at work at a time.
        """
        self.root = root
        self.num_jobs = num_jobs
        self._lock = threading.RLock()
        self._queue: list[str] = []
        self._working: dict[str, subprocess.Popen[bytes] | None] = {}
        self._stopping: set[str] = set()
        known = [(job, path.parent) for path in root.glob(f"*/{JOB_FILE}") if (job := read_job(path.parent))]
        for job, folder in sorted(known, key=lambda pair: pair[0].since):
            if job.state == "queued":
                self._queue.append(folder.name)
            elif holder(folder) or _is_ours(job.pid, folder.name):
                self._working[folder.name] = None

    def create(self, target: str, config: Config) -> str:
        """Make a run of `room.verb` and put it into the queue; returns its name."""
        card, verb = find_verb(target)
        run = create_run(self.root, card.name, verb, config)
        self._enqueue(run.path, run.manifest)
        return run.id

    def repeat(self, name: str) -> str:
        """Queue a new run with the configuration of an old one; returns its name."""
        manifest = read_manifest(self.root / name)
        target = f"{manifest.room}.{manifest.verb}"
        return self.create(target, open_run(self.root / name, find_verb(target)[1]).config)

    def resume(self, name: str) -> None:
        """Queue a stopped, failed or interrupted run again.

        Raises:
            UserError: it is done, waits already or is at work.
        """
        folder = self.root / name
        manifest = read_manifest(folder)
        with self._lock:
            if manifest.status == "done" or self.status(name, current_status(folder, manifest)) in LIVE:
                raise UserError("is done, or at work.", where=name)
            self._enqueue(folder, manifest)

    def stop(self, name: str, force: bool = False) -> None:
        """Take a run from the queue, or ask its process to save and stop.

        Args:
            name: the run.
            force: end the process at once; what it saved before is kept.
        """
        folder = self.root / name
        with self._lock:
            if name in self._queue:
                self._queue.remove(name)
                (folder / JOB_FILE).unlink(missing_ok=True)
                self._note_stopped(folder)
                return
            process = self._working.get(name)
            pid = holder(folder) or (process.pid if process is not None and process.poll() is None else None)
            if pid is not None:
                self._stopping.add(name)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if force else signal.SIGTERM)

    def delete(self, name: str) -> None:
        """Delete a run.

        Raises:
            UserError: it is at work.
        """
        with self._lock:
            if name in self._working:
                raise UserError("is running.", where=name, hint="Stop it first.")
            delete_run(self.root, self.root / name)
            if name in self._queue:
                self._queue.remove(name)

    def status(self, name: str, status: str) -> str:
        """Return a run's status as the studio knows it: `queued` and `starting` beside those of its folder.

        Args:
            name: the run.
            status: what its folder says.
        """
        with self._lock:
            if name in self._queue:
                return "queued"
            if name in self._stopping and (status == "running" or name in self._working):
                return "stopping"
            if name in self._working and status != "running":
                return "starting"
        return status

    def waiting(self) -> list[str]:
        """Return the queued runs, the next one first."""
        with self._lock:
            return list(self._queue)

    def at_work(self) -> list[str]:
        """Return the runs that the queue has at work."""
        with self._lock:
            return list(self._working)

    def tick(self) -> None:
        """Note the processes that ended, and start the next runs where there is room."""
        with self._lock:
            for name, process in list(self._working.items()):
                if not self._alive(name, process):
                    del self._working[name]
                    self._end(self.root / name)
            while self._queue and len(self._working) < self.num_jobs:
                name = self._queue.pop(0)
                with suppress(PolyloomError, OSError):
                    self._working[name] = self._spawn(self.root / name)

    def _enqueue(self, folder: Path, manifest: Manifest) -> None:
        with self._lock:
            _write_job(folder, Job(state="queued", since=_now()))
            record(self.root, folder, manifest)
            self._stopping.discard(folder.name)
            self._queue.append(folder.name)
        self.tick()

    def _spawn(self, folder: Path) -> subprocess.Popen[bytes]:
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, "runs", "resume", folder.name, "--runs", str(self.root), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # Its own session: Ctrl-C in the server's terminal does not reach it.
                start_new_session=True,
                env={**os.environ, "POLYLOOM_PROGRESS_SECONDS": "1", "COLUMNS": "200"},
            )
        _write_job(folder, Job(state="started", since=_now(), pid=process.pid))
        return process

    def _alive(self, name: str, process: subprocess.Popen[bytes] | None) -> bool:
        if process is not None:
            return process.poll() is None
        job = read_job(self.root / name)
        return holder(self.root / name) is not None or _is_ours(job.pid if job else None, name)

    def _end(self, folder: Path) -> None:
        (folder / JOB_FILE).unlink(missing_ok=True)
        if folder.name in self._stopping:
            self._stopping.discard(folder.name)
            self._note_stopped(folder)

    def _note_stopped(self, folder: Path) -> None:
        """Write down that a run was stopped that could not write it itself."""
        with suppress(PolyloomError):
            manifest = read_manifest(folder)
            if manifest.status == "running" and holder(folder) is None:
                run = open_run(folder, find_verb(f"{manifest.room}.{manifest.verb}")[1])
                run.set_status("stopped", "stopped on a page of the studio.")
                record(self.root, folder, run.manifest)


LIVE = ("queued", "starting", "running", "stopping")


def read_job(folder: Path) -> Job | None:
    """Return what the queue knows of a run; None when it knows nothing."""
    path = folder / JOB_FILE
    if not path.exists():
        return None
    with suppress(PolyloomError, ValueError):
        value: Any = read_json(path)
        return Job.model_validate(value)
    return None


def holder(folder: Path) -> int | None:
    """Return the number of the process that works on a run, or None."""
    path = folder / ".lock"
    if not path.exists():
        return None
    try:
        with lock(path):
            return None
    except UserError:
        with suppress(ValueError, OSError):
            return int(path.read_text())
        return None


def _is_ours(pid: int | None, name: str) -> bool:
    """Return whether a process is still the one that was started for a run: numbers are used again."""
    if pid is None:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return name.encode() in words


def _write_job(folder: Path, job: Job) -> None:
    write_json(folder / JOB_FILE, job.model_dump())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
