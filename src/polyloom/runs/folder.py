"""One run is one folder: its configuration, metrics, memoised steps, checkpoints, result and report."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from polyloom.core.config import Config, dump_config, load_config
from polyloom.core.errors import Stopped, UserError
from polyloom.core.files import lock, read_json, write_json, write_text
from polyloom.core.registry import Verb
from polyloom.core.result import Artifact, Provenance, Result, Scalar, Series, Table
from polyloom.runs.progress import progress
from polyloom.runs.provenance import git_revision, machine, versions

Status = Literal["running", "done", "failed", "stopped"]
RUN_SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Manifest(BaseModel):
    """The file `run.json`: what the run is and how far it came."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = RUN_SCHEMA_VERSION
    id: str
    room: str
    verb: str
    created: str
    status: Status = "running"
    error: str | None = None
    parent: str | None = None
    elapsed_seconds: float = 0.0
    cpu_seconds: float = 0.0


class Run:
    """A run folder that is being worked on, or was."""

    def __init__(self, path: Path, manifest: Manifest, config: Config) -> None:
        """Wrap a folder; use `create_run` or `open_run`."""
        self.path = path
        self.manifest = manifest
        self.config = config
        self.checkpoints = path / "checkpoints"
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._cpu_started = time.process_time()

    @property
    def id(self) -> str:
        """The run's name, which is its folder's name."""
        return self.manifest.id

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`; numbers that are not finite are written as null."""
        line = {key: Scalar(value=value).value for key, value in values.items()} | {"time": round(time.time(), 3)}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`; a last line torn by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines if line]

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a progress bar named `label`; the context's value advances it."""
        return progress(label, total)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Compute a step once: its JSON value is stored under `steps/`, and a resumed run reads it back.

        Args:
            name: the step's identity inside the run.
            compute: called when no stored value exists; returns what JSON can hold.

        Returns:
            The value as JSON gives it back (tuples are lists, keys are strings), the first time too.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60]
        path = self.path / "steps" / f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        self.check_stop()
        text = json.dumps(compute(), ensure_ascii=False)
        write_text(path, text)
        self.check_stop()
        return json.loads(text)

    def artifact(self, name: str) -> Path:
        """Return a path under `artifacts/` to write to."""
        path = self.path / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def request_stop(self) -> None:
        """Ask the run to stop at its next safe point."""
        self._stop.set()

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._stop.is_set()

    def check_stop(self) -> None:
        """Stop here if asked to: call it where everything so far is saved.

        Raises:
            Stopped: after SIGTERM, SIGINT or `request_stop`.
        """
        if self.stop_requested:
            raise Stopped("stopped on request.", where=self.id, hint=f"Resume with: polyloom runs resume {self.id}")

    def result(
        self,
        *,
        scalars: Mapping[str, Scalar] | None = None,
        tables: Mapping[str, Table] | None = None,
        series: Mapping[str, Series] | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
        verdicts: Sequence[str] = (),
        limitations: Sequence[str] = (),
    ) -> Result:
        """Build the run's result; room, verb, run and provenance are filled in here."""
        elapsed, cpu = self.times()
        return Result(
            room=self.manifest.room,
            verb=self.manifest.verb,
            run=self.id,
            scalars=dict(scalars or {}),
            tables=dict(tables or {}),
            series=dict(series or {}),
            artifacts=dict(artifacts or {}),
            verdicts=list(verdicts),
            limitations=list(limitations),
            provenance=Provenance(
                config=self.config.model_dump(mode="json"),
                seed=self.config.seed,
                versions=versions(),
                git_revision=git_revision(),
                machine=machine(),
                started=self.manifest.created,
                elapsed_seconds=round(elapsed, 3),
                cpu_seconds=round(cpu, 3),
            ),
        )

    def times(self) -> tuple[float, float]:
        """Return elapsed and CPU seconds of all sessions of the run so far (a killed session is not counted)."""
        elapsed = self.manifest.elapsed_seconds + time.monotonic() - self._started
        cpu = self.manifest.cpu_seconds + time.process_time() - self._cpu_started
        return elapsed, cpu

    def set_status(self, status: Status, error: str | None = None) -> None:
        """Write the run's status to `run.json`."""
        elapsed, cpu = self.times()
        times = {} if status == "running" else {"elapsed_seconds": round(elapsed, 3), "cpu_seconds": round(cpu, 3)}
        self.manifest = self.manifest.model_copy(update={"status": status, "error": error, **times})
        write_json(self.path / "run.json", self.manifest.model_dump())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run's lock and answer SIGTERM and SIGINT with a stop at the next safe point.

        A second SIGINT interrupts at once.

        Raises:
            UserError: another process works on this run.
        """
        with lock(self.path / ".lock"):
            self._drop_torn_line()
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.stop_requested:
            raise KeyboardInterrupt
        self.request_stop()

    def _drop_torn_line(self) -> None:
        path = self.path / "metrics.jsonl"
        if path.exists() and not (data := path.read_bytes()).endswith(b"\n") and data:
            path.write_bytes(data[: data.rfind(b"\n") + 1])


def create_run(
    root: Path, room: str, verb: Verb, config: Config, name: str | None = None, parent: str | None = None
) -> Run:
    """Make a new run folder under `root` with its manifest and resolved configuration.

    Raises:
        UserError: the name is not a plain file name, or is taken.
    """
    now = datetime.now(UTC)
    run_id = name or f"{room}-{verb.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not _NAME.fullmatch(run_id):
        raise UserError(f"{run_id!r} is no run name.", where="--run", hint="Use letters, digits, '.', '_' and '-'.")
    path = root / run_id
    if (path / "run.json").exists():
        hint = f"Choose another name, or continue it with: polyloom runs resume {run_id}"
        raise UserError(f"the run {run_id!r} exists.", where=str(root), hint=hint)
    created = now.isoformat(timespec="milliseconds")
    manifest = Manifest(id=run_id, room=room, verb=verb.name, created=created, parent=parent)
    write_text(path / "config.yaml", dump_config(config))
    write_json(path / "run.json", manifest.model_dump())
    return Run(path, manifest, config)


def read_manifest(path: Path) -> Manifest:
    """Read the `run.json` of the run folder `path`.

    Raises:
        UserError: no run, a run of a newer Polyloom, or a damaged file.
    """
    value = read_json(path / "run.json")
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > RUN_SCHEMA_VERSION:
        what = f"is of a newer Polyloom (run schema {version}; this one reads {RUN_SCHEMA_VERSION})."
        raise UserError(what, where=str(path), hint="Upgrade Polyloom to open it.")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise UserError(
            "is damaged.", where=str(path / "run.json"), hint="Delete the run, or restore the file."
        ) from error


def open_run(path: Path, verb: Verb) -> Run:
    """Open an existing run folder with its resolved configuration.

    Raises:
        UserError: as `read_manifest` and `load_config`.
    """
    manifest = read_manifest(path)
    return Run(path, manifest, load_config(verb.load_config(), path / "config.yaml", {}))


def current_status(path: Path, manifest: Manifest) -> str:
    """Return the run's status; `interrupted` when it claims to run and no process holds its lock."""
    if manifest.status != "running":
        return manifest.status
    try:
        with lock(path / ".lock"):
            return "interrupted"
    except UserError:
        return "running"
