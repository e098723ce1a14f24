"""What the studio is told at its start, and the small files that it keeps beside the runs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from polyloom.core.files import read_text, write_text

LOOPBACK = ("127.0.0.1", "::1", "localhost")
FOLDER = ".studio"


@dataclass(frozen=True)
class Settings:
    """How the studio is served.

    Attributes:
        runs: the runs folder; nothing outside it is served.
        host: the address that it binds to.
        port: the port that it binds to.
        token: what a visitor must know; None on loopback, where none is asked for.
        num_jobs: how many runs are at work at a time; the others wait in the queue.
        database: the URL of the database of annotations and judgements; by default SQLite in the runs folder.
        max_body_bytes: longest body of a request.
    """

    runs: Path
    host: str = "127.0.0.1"
    port: int = 8321
    token: str | None = None
    num_jobs: int = 1
    database: str | None = None
    max_body_bytes: int = 4 * 2**20

    @property
    def folder(self) -> Path:
        """Where the studio keeps what is its own."""
        return self.runs / FOLDER

    @property
    def database_url(self) -> str:
        """The URL of the database, the default one too."""
        return self.database or f"sqlite:///{(self.folder / 'studio.sqlite3').resolve()}"


def kept_secret(path: Path) -> str:
    """Return the secret in a file that only its owner may read; it is made where there is none.

    A restart of the server therefore keeps pages that are open in a browser valid.
    """
    if path.exists() and (known := read_text(path).strip()):
        return known
    made = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    write_text(path, made + "\n")
    path.chmod(0o600)
    return made
