"""The SQLite index of a runs folder: a cache of the run folders, rebuilt from them at any time."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from polyloom.core.errors import PolyloomError, UserError, closest
from polyloom.core.result import read_result
from polyloom.runs.folder import Manifest, current_status, read_manifest

INDEX_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, room TEXT NOT NULL, verb TEXT NOT NULL, created TEXT NOT NULL, status TEXT NOT NULL,
  parent TEXT, elapsed_seconds REAL NOT NULL, verdict TEXT NOT NULL, error TEXT
)
"""


class Row(NamedTuple):
    """One run as the index knows it."""

    id: str
    room: str
    verb: str
    created: str
    status: str
    parent: str | None
    elapsed_seconds: float
    verdict: str
    error: str | None


@contextmanager
def _connect(root: Path) -> Iterator[sqlite3.Connection]:
    """Open the index; one that is damaged or of another version is thrown away and rebuilt from the folders."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "index.sqlite3"
    fresh = not path.exists()
    connection = sqlite3.connect(path, timeout=30)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, INDEX_VERSION):
            raise sqlite3.DatabaseError(f"index version {version}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version={INDEX_VERSION}")
        connection.commit()
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError:
        connection.close()
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        fresh = True
        connection = sqlite3.connect(path, timeout=30)
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version={INDEX_VERSION}")
    with closing(connection), connection:
        if fresh:
            _fill(connection, root)
        yield connection


def _fill(connection: sqlite3.Connection, root: Path) -> int:
    connection.execute("DELETE FROM runs")
    folders = [path.parent for path in sorted(root.glob("*/run.json"))]
    rows = [row for folder in folders if (row := _read_row(folder))]
    _insert(connection, rows)
    return len(rows)


def _read_row(folder: Path) -> Row | None:
    """Return the row of a run folder; a folder that cannot be read is no run."""
    try:
        manifest = read_manifest(folder)
    except PolyloomError:
        return None
    return _row(folder, manifest)


def _row(folder: Path, manifest: Manifest) -> Row:
    verdict = ""
    if manifest.status == "done" and (folder / "result.json").exists():
        verdict = next(iter(read_result(folder / "result.json").verdicts), "")
    return Row(
        manifest.id,
        manifest.room,
        manifest.verb,
        manifest.created,
        manifest.status,
        manifest.parent,
        manifest.elapsed_seconds,
        verdict,
        manifest.error,
    )


def _insert(connection: sqlite3.Connection, rows: list[Row]) -> None:
    connection.executemany("INSERT OR REPLACE INTO runs VALUES (?,?,?,?,?,?,?,?,?)", rows)


def record(root: Path, folder: Path, manifest: Manifest) -> None:
    """Write a run's row."""
    with _connect(root) as connection:
        _insert(connection, [_row(folder, manifest)])


def reindex(root: Path) -> int:
    """Rebuild the index from the folders; returns the number of runs."""
    with _connect(root) as connection:
        return _fill(connection, root)


def list_runs(root: Path, room: str | None = None, status: str | None = None) -> list[Row]:
    """Return the runs under `root`, newest first, with the status that holds now."""
    if not root.exists():
        return []
    with _connect(root) as connection:
        rows = [Row(*values) for values in connection.execute("SELECT * FROM runs ORDER BY created DESC, id DESC")]
    found = []
    for row in rows:
        # Plain strings: a thousand paths would cost more than everything else here.
        if not os.path.exists(f"{root}/{row.id}/run.json"):
            continue
        if row.status == "running":
            row = row._replace(status=current_status(root / row.id, read_manifest(root / row.id)))
        if room in (None, row.room) and status in (None, row.status):
            found.append(row)
    return found


def find_run(root: Path, run: str) -> Path:
    """Return the folder of `run`: a name under `root`, a path, or `last`: the newest that is no step of another run.

    Raises:
        UserError: there is none.
    """
    if run == "last":
        rows = [row for row in list_runs(root) if row.parent is None]
        if not rows:
            raise UserError("there are no runs yet.", where=str(root), hint="Start one, for example: polyloom tour")
        return root / rows[0].id
    for folder in (root / run, Path(run)):
        if (folder / "run.json").exists():
            return folder
    known = [row.id for row in list_runs(root)]
    hint = closest(run, known) if len(known) <= 20 or "'" in closest(run, known) else "See: polyloom runs list"
    raise UserError(f"there is no run {run!r}.", where=str(root), hint=hint)


def delete_run(root: Path, folder: Path) -> None:
    """Delete a run's folder and its row.

    Raises:
        UserError: a process works on it.
    """
    if current_status(folder, read_manifest(folder)) == "running":
        raise UserError("is running.", where=folder.name, hint="Stop it first.")
    shutil.rmtree(folder)
    with _connect(root) as connection:
        connection.execute("DELETE FROM runs WHERE id = ?", (folder.name,))
